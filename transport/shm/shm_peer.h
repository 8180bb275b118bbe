// One peer of a Link: its sockets, control pages and memory. Fields belong to the Link's thread;
// those marked (m) are also read under the Link's mutex by threads that add and remove memory, so
// the Link's thread changes them under it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <map>

#include "kvl/transport.h"
#include "transport/base/unique_fd.h"
#include "transport/shm/shm_batch.h"
#include "transport/shm/shm_memory.h"
#include "transport/shm/shm_outbox.h"
#include "transport/shm/shm_socket.h"
#include "transport/shm/shm_wire.h"

namespace kvl::shm {

// opened -> connecting -> up -> draining -> (peer_down, gone); every state may go to draining.
enum class PeerState : std::uint8_t {
  opened,      // no offer accepted yet
  connecting,  // active: until the welcome; passive: until the hello
  up,
  draining,  // shut; waits until nobody touches anything any more
};

enum class CrossMemory : std::uint8_t { untried, allowed, denied };

// What an epoll event points to.
struct Source {
  enum class Kind : std::uint8_t { listener, stranger, socket, process };
  Kind kind;
  void* owner;
};

// A message about memory that waits for room in the socket.
struct OutgoingCard {
  MessageType type = MessageType::memory;
  MemoryCard card;
};

struct Peer {
  PeerId id;
  PeerRole role = PeerRole::active;
  PeerState state = PeerState::opened;  // (m)
  Token token{};                        // ours for this peer; probed by it
  Offer offer;                          // the peer's, once accepted
  std::int64_t deadline_ns = INT64_MAX;

  Outbox own;       // (m)
  OutboxView view;  // (m)
  UniqueFd socket;  // (m)
  UniqueFd pidfd;   // (m)
  pid_t pid = 0;
  std::uint64_t probe_address = 0;
  CrossMemory cross_memory = CrossMemory::untried;
  Status cross_memory_status;
  Source socket_source{Source::Kind::socket, this};
  Source process_source{Source::Kind::process, this};

  // Our copies of the ring positions: the shared ones are only published.
  std::uint64_t note_head = 0, note_tail = 0;
  std::uint32_t rung = 0;  // the peer's `armed` that was answered with a doorbell
  bool blocked = false;    // we wait for room in its reading
  bool up_announced = false;
  bool notes_open = true;
  bool closed_here = false;
  bool goodbye = false;       // the peer will not touch our memory any more
  bool goodbye_sent = false;  // ours
  bool exited = false;        // its process is gone
  bool drained = false;
  Code down_code = Code::ok;
  Code doom = Code::ok;  // found while its batches were walked: drain it after that

  BatchList queue;
  std::uint32_t batches_open = 0;  // without their event
  std::uint32_t windows = 0;

  std::map<std::uint64_t, RemoteMemory> memories;  // by index << 32 | generation
  std::deque<OutgoingCard> outgoing;               // (m)
};

inline std::uint64_t card_key(const MemoryCard& card) {
  return (std::uint64_t{card.index} << 32) | card.generation;
}

}  // namespace kvl::shm
