// What is under way: batches and peers.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>

#include "kvl/transport.h"
#include "transport/base/batch_cursor.h"
#include "transport/base/slot_pool.h"
#include "transport/fabric/peer_wire.h"
#include "transport/verbs/verbs_queue_pair.h"

namespace kvl::verbs {

struct BatchSlot {
  Batch batch;  // batch.note names `note`
  std::array<std::byte, kNoteBytesMax> note{};
  BatchCursor cursor;
  std::uint64_t bytes_done = 0;
  std::uint32_t requests = 0;  // under way; nothing is said of memory before they have ended
  std::uint32_t next = kNoSlot, previous = kNoSlot;
  Code code = Code::ok;
  bool used = false;
  bool started = false;  // its ReadyToken was seen ready
  bool ending = false;   // no more is posted; `code` is its end
  bool note_posted = false;

  bool all_posted() const { return cursor.done() && (batch.note.empty() || note_posted); }
  // Something is to be posted; or there never was anything, and it is only to be ended.
  bool wants_poll() const { return !ending && (requests == 0 || !all_posted()); }
};

// The buffer of a message that is under way.
struct MessageSlot {
  std::uint32_t next = kNoSlot, previous = kNoSlot;
  bool used = false;
};

// opened -> connecting -> up -> closing -> (peer_down, gone); every state may go to closing.
enum class PeerState : std::uint8_t { opened, connecting, up, closing };

// A message that is still to be posted.
struct Owed {
  MessageType type = MessageType::nothing;
  std::uint64_t value = 0;
};

struct Peer {
  PeerId id;
  PeerState state = PeerState::opened;
  PeerToken token;   // ours for this peer
  PeerToken remote;  // the peer's for us, once accepted
  bool accepted = false;
  bool ready_said = false;    // the other side knows that our queue pair is connected
  bool ready_heard = false;   // its queue pair is connected: it may be sent to
  bool hello_queued = false;  // in `owed`, or posted
  bool up_announced = false;
  bool closed_here = false;
  std::unique_ptr<QueuePair> qp;  // null: destroyed, nothing can land any more
  Code down_code = Code::ok;
  std::int64_t deadline_ns = INT64_MAX;
  std::int64_t probe_ns = INT64_MAX;  // when it is asked whether it lives
  SlotList queue;
  std::uint32_t batches_open = 0;  // without their event
  std::deque<Owed> owed;

  const PeerToken* owner() const { return accepted ? &remote : nullptr; }
  bool may_send() const { return state == PeerState::up || (accepted && ready_heard); }
};

}  // namespace kvl::verbs
