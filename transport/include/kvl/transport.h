// The transport interface: what a kind of fabric must do, and what it promises.
//
//   Transport (a kind)  ->  Device (one NIC, port or link of this machine)
//                       ->  Link (an opened device, owned by one thread)  ->  peers and memory
//
// The engine (engine.h) is the only caller in the product; tests drive Links directly. The promises
// are numbered; tests/transport/conformance has a test of each, run over every transport.
//
//  1 accepted batch -> exactly one batch event: also on close, peer death, cancel. (Destroying a
//    Link ends what is left silently: quiescent on return.)
//  2 events come from poll() only, never from inside post()
//  3 a batch event means that nothing can touch the local bytes any more, and (code ok) that every
//    byte is in place at its destination
//  4 only the bytes named change
//  5 a note is seen after all bytes of its batch are visible to the receiver, exactly once
//  6 a refused batch has no effect
//  7 exhausted clears after poll()
//  8 batches posted to a peer before peer_up are kept and start in order of post
//  9 poll() does bounded work
// 10 stale ids are answered invalid_argument, never dereferenced
// 11 two Links of one process may talk
// 12 one Link talks to many peers
// 13 after peer_down or close_peer the peer cannot write our memory any more, as Device::fence says
// 14 post() and poll() do not allocate after warm-up
// 15 an owner that sleeps on wait_fd() after arm() is woken by an arrival
// 16 nothing of a batch moves before its ReadyToken is ready
// 17 every run is checked at the target: registration, access, bounds, and that the memory was
//    exported to this very peer. A run that fails is refused with permission or invalid_argument
//    and changes nothing; the Link and its peers live on
// 18 a batch that fails does not fail other batches, unless the peer is lost
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/clock.h"
#include "kvl/config.h"
#include "kvl/memory.h"
#include "kvl/metrics.h"
#include "kvl/page_op.h"
#include "kvl/status.h"

namespace kvl {

enum class Cap : std::uint32_t {
  write = 1,
  read = 2,
  notify = 4,
  host_memory = 8,
  cuda_memory = 16,
  inter_node = 32,
};
constexpr std::uint32_t operator|(Cap a, Cap b) {
  return static_cast<std::uint32_t>(a) | static_cast<std::uint32_t>(b);
}
constexpr std::uint32_t operator|(std::uint32_t a, Cap b) {
  return a | static_cast<std::uint32_t>(b);
}

// How a lost peer is shut out of our memory (promise 13).
enum class Fence : std::uint8_t {
  immediate,     // once peer_down or close_peer has happened, no byte of the peer lands
  av_remove,     // after the address was removed (EFA)
  process_exit,  // once peer_down has come; if its code is timed_out, the peer is stuck inside our
                 // memory, and its writes may land until its process is gone. Writers are CPUs: of
                 // a batch that has had its event no byte lands any more, at the target either
  none,          // unknown: pages stay quarantined until the peer acknowledges
};

inline constexpr std::size_t kNoteBytesMax = 32;

struct Limits {
  std::uint64_t op_bytes_max = UINT32_MAX;    // bytes of one piece
  std::uint32_t batches_inflight_max = 1024;  // per Link; post() answers exhausted beyond
};

// One NIC, port or link of this machine. Two devices of one transport can talk when their domains
// are equal (for shm: same boot and user; for tcp: always).
struct Device {
  std::string name;  // unique within its transport: "eth0", "host", "sim0"
  std::string domain;
  std::uint32_t caps = 0;  // Cap bits
  Limits limits;
  Fence fence = Fence::none;
  std::uint64_t bytes_per_second = 0;  // nominal; 0 unknown
  int numa_node = -1;
};

// Ids are slots with a generation. They name objects of one Link.
struct MemoryId {
  std::uint64_t value = 0;
  friend bool operator==(MemoryId, MemoryId) = default;
};
struct RemoteId {
  std::uint64_t value = 0;
  friend bool operator==(RemoteId, RemoteId) = default;
};
struct PeerId {
  std::uint64_t value = 0;
  friend bool operator==(PeerId, PeerId) = default;
};
struct Ticket {
  std::uint64_t value = 0;
  friend bool operator==(Ticket, Ticket) = default;
};

using Blob = std::vector<std::byte>;

enum class Direction : std::uint8_t { write = 0, read = 1 };

// Nothing of a batch is posted before the flag has reached the value. No flag: ready at once. The
// flag must live until the batch event. (CUDA events join here with the cuda folder.)
struct ReadyToken {
  const std::atomic<std::uint32_t>* flag = nullptr;
  std::uint32_t at_least = 0;
  bool ready() const {
    return flag == nullptr || flag->load(std::memory_order_acquire) >= at_least;
  }
};

// One post. `ops`, `locals` and `remotes` stay the caller's and must not change until the batch
// event; `note` is copied by post(). Only positions [begin, end) of the ops are moved: begin counts
// in the first op, end in the last one (end 0: to its end). See PageOp.
struct Batch {
  Ticket ticket;  // the caller's; comes back in the event. Unique among batches in flight
  PeerId peer;
  Direction direction = Direction::write;
  std::span<const PageOp> ops;        // may be empty: a note alone
  std::uint64_t begin = 0, end = 0;   // bytes
  std::span<const MemoryId> locals;   // PageOp::local_region indexes this
  std::span<const RemoteId> remotes;  // PageOp::remote_region indexes this
  ReadyToken after;
  std::span<const std::byte> note;  // <= kNoteBytesMax; write only; empty: none
};

struct Event {
  enum class Kind : std::uint8_t {
    batch,      // ticket, code, bytes_done
    note,       // note, note_bytes: from `peer`
    peer_up,    // batches flow
    peer_down,  // code says why; its batches have had or will have their events; the id is stale
  };
  Kind kind = Kind::batch;
  Code code = Code::ok;
  std::uint8_t note_bytes = 0;
  PeerId peer;
  Ticket ticket;
  std::uint64_t bytes_done = 0;  // acknowledged by the target (write) or placed here (read)
  std::array<std::byte, kNoteBytesMax> note{};
};

// Which side of a pair of peers opens connections where a fabric needs one. The engine's dialer is
// active. Both sides of a pair have opposite roles.
enum class PeerRole : std::uint8_t { active, passive };

// What the two sides of an authenticated session share and nobody else knows.
struct PeerSecurity {
  std::array<std::byte, 32> key{};  // of this peer of the Link and its session; secret
  bool encrypt = false;             // no byte of a page may travel in plain
};

// One opened device. Everything but add_memory/remove_memory is called by one thread (the owner);
// those two may be called by any thread beside it. Nothing here blocks, sleeps or calls back.
class Link {
 public:
  virtual ~Link() = default;
  virtual const Device& device() const = 0;

  // Connecting: both sides open_peer, exchange offer() blobs over the control channel, accept() the
  // other's. peer_up follows on each side, or peer_down after the Link's connect deadline.
  virtual Result<PeerId> open_peer(PeerRole role) = 0;
  // After open_peer, before offer: connections of this peer must prove that they know the key. Not
  // called for a session without authentication. unsupported: the Link cannot encrypt and its bytes
  // leave this host.
  virtual Status secure_peer(PeerId, const PeerSecurity& security) {
    if (!security.encrypt || (device().caps & static_cast<std::uint32_t>(Cap::inter_node)) == 0) {
      return {};
    }
    return {Code::unsupported, "encrypt=on, and this transport cannot encrypt"};
  }
  virtual Result<Blob> offer(PeerId) = 0;
  // `remote_offer` is hostile. invalid_argument: not an offer of this transport and version.
  virtual Status accept(PeerId, std::span<const std::byte> remote_offer) = 0;
  // Batches in flight complete as aborted, then peer_down comes: aborted, or with
  // Fence::process_exit perhaps timed_out.
  virtual void close_peer(PeerId) = 0;
  // A message from the peer's Link, sent by ControlChannel. Hostile. Stale ids are ignored.
  virtual void on_control(PeerId, std::span<const std::byte>) = 0;

  // May take long (pinning). Any thread.
  virtual Result<MemoryId> add_memory(const Memory&) = 0;
  // exhausted while a batch of ours uses it. After return no peer reaches it through this Link.
  virtual Status remove_memory(MemoryId) = 0;
  // What `peer` needs to name this memory (key, bytes, access). Never an address to trust.
  virtual Result<Blob> export_memory(MemoryId, PeerId) = 0;
  // `blob` is hostile.
  virtual Result<RemoteId> import_memory(PeerId, std::span<const std::byte> blob) = 0;
  virtual void drop_memory(RemoteId) = 0;

  // Takes batches of any length. ok: exactly one batch event will follow. Errors: invalid_argument
  // (stale id, region index, bounds of local memory, note too long), exhausted, unsupported.
  // Remote bounds are checked at the target, or here where the Link knows them.
  virtual Status post(const Batch&) = 0;
  // Drops the part that has not been posted; the one batch event (aborted, or ok when it was done)
  // comes when nothing can touch either side. not_found: no such batch in flight.
  virtual Status cancel(Ticket) = 0;
  // The only place where progress happens. Returns how many events were written. Bounded work.
  virtual std::size_t poll(std::span<Event> events) = 0;

  // A descriptor that becomes readable when poll() has something to do; -1: must be polled.
  virtual int wait_fd() const = 0;
  // Before sleeping on wait_fd(). False: work is pending, poll again instead.
  virtual bool arm() = 0;
  // When the Link wants poll() for its own timers although nothing arrives; INT64_MAX: never.
  virtual std::int64_t next_timer_ns() const = 0;

  virtual void visit_metrics(MetricVisitor&, const MetricLabels&) const {}
};

// Messages between the two Links of a pair of peers, through the engine's control connection.
// Reliable and ordered while the connection lives. Callable from the Link's thread.
class ControlChannel {
 public:
  virtual ~ControlChannel() = default;
  virtual Status send(PeerId, std::span<const std::byte>) = 0;
};

// What a Link is given: all of it outlives the Link.
struct LinkContext {
  ControlChannel& control;
  MemoryOps& memory_ops;
  const Clock& clock;
  bool same_host = false;  // every peer is on this host: listeners need not be seen from others
};

// A kind of fabric. devices() is empty where it cannot run; why_unusable() then says why, in one
// sentence that names what to do.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string_view name() const = 0;
  // Preference between transports that reach a peer: lower is better (shm 10, fabrics 20…, tcp 90).
  virtual int rank() const = 0;
  virtual std::vector<Device> devices() = 0;
  virtual std::string why_unusable() = 0;
  // unsupported, unavailable (device gone), exhausted (descriptors, memory).
  virtual Result<std::unique_ptr<Link>> open(const Device&, const LinkContext&) = 0;
};

// Every transport built in, configured; the list is generated from transport/CMakeLists.txt.
std::vector<std::unique_ptr<Transport>> make_transports(const Settings&);
// The rows of all transports, for Settings::load.
std::vector<Setting> transport_settings();

}  // namespace kvl
