// The engine: all rails of this process behind one queue. Register memory, connect to peers, move
// pages, be told. This is what an inference engine's connector links against.
//
//   Engine = rails (one Link and its thread each) + one control connection per peer.
//
// Thread-safe: every method may be called by any thread. Events are taken by poll(); user code
// never runs on an engine thread. With progress = caller there is no thread at all: poll() and
// wait() drive everything, and somebody has to call them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
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
#include "kvl/transport.h"

namespace kvl {

class ControlNet;

// Registered memory, and the name by which a peer may address it. Carries a generation: the handle
// of removed memory never names other memory. Plain value: send it to peers as it is.
struct MemoryHandle {
  std::uint64_t value = 0;
  friend bool operator==(MemoryHandle, MemoryHandle) = default;
};
struct PeerHandle {
  std::uint64_t value = 0;
  friend bool operator==(PeerHandle, PeerHandle) = default;
};
struct TransferId {
  std::uint64_t value = 0;
  friend bool operator==(TransferId, TransferId) = default;
};
// 128 random bits that name one engine instance for its lifetime.
using EngineId = std::array<std::byte, 16>;

inline constexpr std::size_t kTransferNoteBytesMax = 24;
inline constexpr std::size_t kMessageBytesMax = 4u << 20;

struct EngineConfig {
  std::string listen = "127.0.0.1:0";  // control listener; beyond loopback it needs a secret
  std::string advertise;               // address told to others; "" = from listen
  bool force_tcp = false;
  std::string require;              // "" or a transport name: fail rather than use another
  std::string transports = "all";   // comma list of names that may be used
  std::string progress = "thread";  // thread | caller
  std::int64_t rails_per_device = 1;
  std::int64_t piece_bytes = 4 << 20;
  std::int64_t piece_runs = 256;
  std::int64_t stripe_bytes = 512 << 10;
  std::int64_t rail_stall_ms = 1000;  // a path that stands still is given up, if there is another
  std::string near;                   // what the memory is near to; "": everything
  std::string topology_file;          // "": this host as it is
  std::int64_t register_threads = 4;  // for large memory
  std::int64_t pieces_inflight = 8;   // per rail and peer
  std::int64_t transfers_max = 4096;  // in flight; submit answers exhausted beyond
  std::int64_t peers_max = 4096;
  std::int64_t strangers_max = 256;  // connected to us, no hello yet
  std::int64_t strangers_per_address_max = 128;
  std::int64_t peer_memories_max = 16384;  // that one peer may announce
  std::int64_t connect_timeout_ms = 2000;
  std::int64_t transfer_timeout_ms = 30000;  // when a Transfer names none
  std::int64_t heartbeat_ms = 300;
  std::int64_t peer_timeout_ms = 1500;  // silence after which a peer is lost
  std::int64_t reconnect_ms = 200;      // first pause between attempts; doubles up to 5 s
};
// With the rows of kvl/security.h.
std::vector<Setting> engine_settings();

// A set of this engine's rails: bit i is rail i of Engine::rails(). Rails beyond 63 are in no set.
using RailSet = std::uint64_t;
struct RailInfo {
  std::string transport, device;
};

// One movement of pages between this process and a peer. `ops`, `locals`, `remotes` and the flag of
// `after` stay the caller's and must not change or go away until the transfer event.
struct Transfer {
  PeerHandle peer;
  Direction direction = Direction::write;
  std::span<const PageOp> ops;
  std::span<const MemoryHandle> locals;   // ours, by PageOp::local_region
  std::span<const MemoryHandle> remotes;  // the peer's, by PageOp::remote_region
  ReadyToken after;
  // write only: shown to the peer once, after every byte of the transfer is visible there. Copied.
  std::span<const std::byte> note;
  std::int64_t timeout_ms = 0;  // 0: EngineConfig::transfer_timeout_ms
  std::uint64_t user = 0;       // comes back in the event
  RailSet avoid = 0;            // rails that carry it only while no other one can
};

// What is known of the memory on both sides once a transfer has ended.
enum class Physical : std::uint8_t {
  quiescent,    // no byte of it can land any more, here or there
  quarantined,  // the remote side may still be written by it: the pages there must not be reused
                // until the peer is fenced (peer_down with fenced = true) or its epoch has ended
};

struct EngineEvent {
  enum class Kind : std::uint8_t {
    transfer,   // transfer, user, code, physical, bytes, rails. Exactly one per accepted submit
    proven,     // peer, transfer, user: it ended quarantined, and no byte of it can land any more.
                // At most one; what is not proven before peer_down is decided by its `fenced`
    note,       // peer, data (<= kTransferNoteBytesMax)
    message,    // peer, data: from the peer's Engine::send
    peer_up,    // peer, epoch
    peer_down,  // peer, epoch, code, fenced: true = no byte of that epoch can land here any more
  };
  Kind kind = Kind::transfer;
  Code code = Code::ok;
  Physical physical = Physical::quiescent;
  bool fenced = true;
  PeerHandle peer;
  TransferId transfer;
  std::uint64_t user = 0;
  std::uint64_t bytes = 0;  // acknowledged
  RailSet rails = 0;        // that were given a piece of it
  std::uint64_t epoch = 0;
  std::vector<std::byte> data;
};

// One way to a peer, for `kvlane doctor`: in order of preference.
struct PathInfo {
  std::string transport, device;
  bool in_use = false;
  std::string reason;      // why it is not used; "" when it is
  std::uint32_t caps = 0;  // Cap bits of our device
};
struct PeerInfo {
  std::string address;
  EngineId id{};
  std::uint64_t epoch = 0;
  bool up = false;
  bool authenticated = false;  // it has proven that it knows our secret
  bool encrypted = false;      // data that leaves this host is sealed, too
  std::vector<PathInfo> paths;
};

// The world an engine lives in; the defaults are the real one. Everything outlives the engine.
struct EngineWorld {
  const Clock* clock = nullptr;                        // default: SteadyClock
  std::unique_ptr<ControlNet> control;                 // default: TCP on EngineConfig::listen
  std::vector<std::unique_ptr<Transport>> transports;  // empty: make_transports(settings)
  std::unique_ptr<MemoryOps> (*make_memory_ops)() = make_host_memory_ops;  // one per rail
  std::uint64_t seed = 0;                                                  // 0: from the kernel
  std::int32_t pid = 0;  // told to peers; 0: this process's
  // A descriptor that is readable once that process has ended, for the engine to close; -1: cannot.
  std::function<int(std::int32_t pid)> open_process;  // default: a pidfd
};

class Engine {
 public:
  // Fails with the reason: unavailable (require= cannot be met, port in use), invalid_argument
  // (settings that contradict each other), permission (a listener beyond loopback without a secret,
  // or a secret_file that others can read). `error` (optional) receives a sentence.
  static Result<std::unique_ptr<Engine>> open(const Settings&, std::string* error = nullptr);
  static Result<std::unique_ptr<Engine>> open(const Settings&, EngineWorld,
                                              std::string* error = nullptr);
  // Ends everything: open transfers end without an event; returns when no rail can touch memory.
  virtual ~Engine() = default;

  virtual std::string address() const = 0;  // what peers pass to connect()
  virtual EngineId id() const = 0;
  virtual std::uint64_t epoch() const = 0;  // grows with every start of a process on this host
  virtual std::vector<RailInfo> rails() const = 0;  // those that are open; they stay

  // Registers with every near rail (with reserves after return, EngineConfig::near) and tells every
  // peer. The memory must stay mapped until deregistered.
  virtual Result<MemoryHandle> register_memory(const Memory&) = 0;
  // exhausted while a transfer of ours uses it. After return no peer can reach it.
  virtual Status deregister_memory(MemoryHandle) = 0;

  // Returns at once; peer_up or, after connect_timeout_ms, peer_down follows (permission, and at
  // once: the two sides do not have the same secret), and the engine keeps trying until
  // disconnect(). The same address gives the same handle. Transfers submitted before
  // peer_up wait for it. A peer that dialed us gets its handle in its peer_up event.
  virtual Result<PeerHandle> connect(std::string_view address) = 0;
  // Transfers end as aborted; no peer_down follows. The peer is fenced on return of the next
  // poll().
  virtual Status disconnect(PeerHandle) = 0;
  virtual Result<PeerInfo> describe(PeerHandle) const = 0;

  // Errors: invalid_argument, not_found (unknown peer), exhausted (too many transfers), peer_lost.
  virtual Result<TransferId> submit(const Transfer&) = 0;
  // Starts to end a transfer; its event comes with code aborted (or ok when it was done) and says
  // quiescent, or quarantined when `deadline_ms` from now nothing is proven.
  virtual Status cancel(TransferId, std::int64_t deadline_ms) = 0;
  // Ordered after earlier sends; lost with the peer. `message` <= kMessageBytesMax.
  virtual Status send(PeerHandle, std::span<const std::byte> message) = 0;

  // Takes events; also drives everything when progress = caller.
  virtual std::size_t poll(std::span<EngineEvent> events) = 0;
  // Sleeps until poll() has something or the time is over (0: do not sleep). True: there is.
  virtual bool wait(std::int64_t timeout_ms) = 0;
  // Readable when poll() has something to do, for an outer event loop that sleeps by itself:
  //
  //   while (running) {
  //     while (engine.poll(events) > 0) …;
  //     const std::int64_t ms = engine.arm(1000);
  //     if (ms > 0) epoll_wait(outer, …, ms);  // event_fd() is in `outer`, level-triggered
  //   }
  virtual int event_fd() const = 0;
  // Before each such sleep: how long it may be, at most `most_ms`; 0: call poll() again first. With
  // progress = caller nothing of a rail wakes event_fd() without it, and the engine's timers
  // (heartbeats, deadlines) run in poll() only.
  virtual std::int64_t arm(std::int64_t most_ms) = 0;

  virtual void visit_metrics(MetricVisitor&) const = 0;
};

// What this machine has: every transport with its devices or the reason why it is missing.
struct TransportInfo {
  std::string name;
  int rank = 0;
  std::vector<Device> devices;
  std::string why_unusable;
};
std::vector<TransportInfo> probe_transports(const Settings&);

}  // namespace kvl
