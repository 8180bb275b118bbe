// What is under way: batches and peers.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>

#include "kvl/transport.h"
#include "transport/base/slot_pool.h"
#include "transport/fabric/batch_table.h"
#include "transport/fabric/peer_wire.h"
#include "transport/verbs/verbs_queue_pair.h"

namespace kvl::verbs {

struct BatchSlot : PostedBatch {
  std::uint32_t requests = 0;  // under way; nothing is said of memory before they have ended

  // Something is to be posted; or there never was anything, and it is only to be ended.
  bool wants_poll() const { return !ending && (requests == 0 || !all_posted()); }
};

// The buffer of a message that is under way.
struct MessageSlot {
  std::uint32_t next = kNoSlot, previous = kNoSlot;
  bool used = false;
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
  bool in_rounds = false;
  std::uint32_t batches_open = 0;  // without their event
  std::deque<Owed> owed;

  const PeerToken* owner() const { return accepted ? &remote : nullptr; }
  bool may_send() const { return state == PeerState::up || (accepted && ready_heard); }
};

}  // namespace kvl::verbs
