// What is under way: batches, the operations that they are made of, and peers.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/slot_pool.h"
#include "transport/fabric/batch_table.h"
#include "transport/libfabric/fabric_api.h"
#include "transport/libfabric/fabric_wire.h"

namespace kvl::libfabric {

struct LocalMemory;

struct BatchSlot : PostedBatch {
  std::uint32_t local_region = UINT32_MAX;  // that `local` is of
  const LocalMemory* local = nullptr;       // held by the batch: looked up once, not once a page
  std::uint32_t operations = 0;  // under way; nothing is said of memory before they have ended
  // Its writes carry immediates of this slot: how many were posted, and how many completed well.
  std::uint32_t count_slot = kNoSlot;
  std::uint32_t counted = 0, counted_ok = 0;
  bool looked_at = false;  // whether they are to
};

// One operation of the provider, which writes to `context` while it is under way.
struct Operation {
  enum class Kind : std::uint8_t { write, read, note, message, receive };
  fi_context2 context{};
  std::uint64_t peer = 0;
  std::uint64_t bytes = 0;
  std::uint32_t batch = kNoSlot;
  std::uint32_t next = kNoSlot, previous = kNoSlot;
  std::uint32_t moves = 0;  // of its peer, when it was posted
  Kind kind = Kind::message;
  bool used = false;
};

// What a peer's immediates of one slot add up to, and the note that waits for them.
struct Counted {
  std::uint32_t arrived = 0, due = 0;
  bool said = false;  // how many are due
  std::uint8_t note_bytes = 0;
  std::array<std::byte, kNoteBytesMax> note{};
  bool complete() const { return said && arrived >= due; }
};

struct Peer {
  PeerId id;
  PeerRole role = PeerRole::active;
  PeerState state = PeerState::opened;
  PeerToken token;   // ours for this peer
  PeerToken remote;  // the peer's for us, once accepted
  bool accepted = false;
  bool heard = false;  // a hello came: the other side has our address
  bool up_announced = false;
  bool closed_here = false;
  bool released = false;  // the other side has let go of our memory
  bool said_released = false;
  bool said_clear = false;
  bool fenced = false;  // its address is gone, as far as it may be
  fi_addr_t address = FI_ADDR_UNSPEC;
  std::string address_bytes;
  Code down_code = Code::ok;
  std::int64_t deadline_ns = INT64_MAX;
  std::int64_t give_up_ns = INT64_MAX;  // … on what the provider does not complete
  std::int64_t hello_ns = INT64_MAX;    // when the next hello is due
  std::int64_t probe_ns = INT64_MAX;    // when it is asked whether it lives
  bool active = false;                  // something came from it since the last probe
  SlotList queue;
  bool in_rounds = false;
  // As remotes_ wants it.
  const PeerToken* owner() const { return accepted ? &remote : nullptr; }
  std::uint32_t batches_open = 0;  // without their event
  std::uint32_t operations = 0;    // under way
  std::deque<Owed> owed;

  // Notes that wait for immediates (fabric_counts.cc): ours to the peer, and the peer's to us.
  std::uint32_t channel = kNoChannel;  // as the peer has said
  std::uint32_t free_slots = 0;        // bits
  std::uint32_t own_channel = kNoChannel;
  bool said_grant = false;
  std::vector<Counted> slots;
  std::uint32_t freed = 0;  // bits; to be told

  // When one of the two changes its address (fabric_move.cc). `held`: nothing is posted for it.
  bool held = false, said_quiet = false, heard_quiet = false;
  std::uint64_t messages_sent = 0, messages_taken = 0;  // those whose loss would be one
  std::uint64_t messages_due = 0;                       // sent by the other side when it fell quiet
  std::uint32_t moves = 0;
  std::uint32_t endpoint_told = UINT32_MAX;  // of which its last offer was

  // Neither side has anything under way, and what the other has sent was taken.
  bool quiet() const {
    const auto waits = [](const Counted& counted) { return counted.said && !counted.complete(); };
    return operations == 0 && messages_taken >= messages_due &&
           std::none_of(slots.begin(), slots.end(), waits);
  }
};

}  // namespace kvl::libfabric
