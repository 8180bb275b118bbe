// A seeded network in virtual time: nodes, ports, packets, and everything that can go wrong with
// them. One thread drives it; equal seeds and equal calls give equal runs, byte for byte.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvl/clock.h"
#include "kvl/transport.h"

namespace kvl::sim {

class SimLink;
class SimControlNet;

// A simulated machine with one process on it.
using NodeId = std::uint32_t;

// What the network does to a packet. Probabilities are per try.
struct SimOptions {
  std::uint64_t seed = 1;
  std::int64_t delay_min_ns = 2'000;   // one way
  std::int64_t delay_mean_ns = 6'000;  // exponential above the minimum, so packets overtake
  double reorder = 0.02;               // an extra delay of up to reorder_ns
  std::int64_t reorder_ns = 200'000;
  double drop = 0;                                  // a lost packet is sent again, as a fabric does
  std::int64_t retransmit_ns = 500'000;             // the first pause; doubles with each try
  int tries_max = 9;                                // then the connection is broken
  std::uint64_t bytes_per_second = 12'500'000'000;  // per port; 0: without limit
  std::uint64_t packet_bytes_max = 64 << 10;
  std::uint32_t packets_inflight_max = 16;  // per batch
  std::uint32_t batches_inflight_max = 64;  // per Link
  std::int64_t connect_timeout_ns = 2'000'000'000;
  double duplicate = 0;  // a packet arrives a second time, later; receivers filter it
  double corrupt = 0;    // a byte of a data packet is flipped, unnoticed by the fabric
  // immediate: a closed connection lets nothing in. process_exit: as shared memory, what the peer
  // still writes lands until the peer's own Link has closed, or its process has died.
  Fence fence = Fence::immediate;
  std::size_t control_queue_bytes_max = 64u << 20;  // per control connection
  bool trace = false;                               // keep a line per event, for trace()
  bool trace_packets = true;                        // … also for what happens to packets
};

// Where a packet comes from or goes to. `life` tells a restarted node from its former self.
struct Port {
  static constexpr std::uint32_t kControl = UINT32_MAX;  // not a device: the control network
  NodeId node = 0;
  std::uint32_t device = kControl;
  std::uint32_t life = 0;
};

class VirtualClock final : public Clock {
 public:
  std::int64_t now_ns() const override { return now_ns_.load(std::memory_order_relaxed); }

 private:
  friend class SimWorld;
  std::atomic<std::int64_t> now_ns_{1'000'000};  // not 0, which users take for "never"
};

// How a node ends: a process that dies leaves a kernel behind that closes its control connections;
// a machine that dies leaves silence.
enum class Crash : std::uint8_t { process, machine };

// How the fabric touches memory of a node.
enum class Touch : std::uint8_t { remote_write, remote_read, local_write, local_read };

// Sees what a fabric does behind its owner's back: for checkers and schedulers.
class Observer {
 public:
  virtual ~Observer() = default;
  // Something for this node has happened: its process has a reason to run.
  virtual void stirred(NodeId node) = 0;
  // Bytes of `node` are about to be read or written; `other` is the far end.
  virtual void touched(NodeId node, Touch touch, const std::byte* data, std::uint64_t bytes,
                       NodeId other) = 0;
};

class SimWorld {
 public:
  using Action = std::function<void()>;

  explicit SimWorld(const SimOptions& options);
  ~SimWorld();
  SimWorld(const SimWorld&) = delete;
  SimWorld& operator=(const SimWorld&) = delete;

  const SimOptions& options() const { return options_; }
  // May be changed at any time; applies to packets sent from then on.
  SimOptions& options() { return options_; }
  const Clock& clock() const { return clock_; }
  std::int64_t now_ns() const { return clock_.now_ns(); }

  // Time stands still unless one of these is called.
  bool step();                         // runs the next event, at its time; false: there is none
  void run_until(std::int64_t at_ns);  // runs all events up to then; the clock ends there
  void advance(std::int64_t ns) { run_until(now_ns() + ns); }
  std::int64_t next_event_ns() const;  // INT64_MAX: none
  void after(std::int64_t delay_ns, Action action);

  // Faults. Packets already on their way meet them as well.
  void partition_one_way(NodeId from, NodeId to) { cut_.insert({from, to}); }
  void partition(NodeId a, NodeId b);
  void heal(NodeId a, NodeId b);
  void heal_all() { cut_.clear(); }
  void unclog_all() { clogged_until_.clear(); }
  // Packets wait on the path until the time is over; nothing is lost.
  void clog(NodeId from, NodeId to, std::int64_t ns) { clogged_until_[{from, to}] = now_ns() + ns; }
  // Every connection of the Links of `a` with those of `b` breaks at a's end: b notices later, and
  // what is on its way still lands there. New ones may be made at once.
  void break_lanes(NodeId a, NodeId b);
  // A NIC or its cable dies: its Link loses every peer at once, the other sides notice in time.
  void kill_device(NodeId node, std::uint32_t device);
  void revive_device(NodeId node, std::uint32_t device) { dead_devices_.erase({node, device}); }
  void revive_all() { dead_devices_.clear(); }
  // Nothing enters or leaves any more; Links and nets of the node are dumb until destroyed.
  void crash(NodeId node, Crash kind = Crash::process);
  // New Links and nets of the node live from now on; those of an earlier life stay dumb.
  void restart(NodeId node);

  // For EngineWorld: the number of a node's present process, and a descriptor that is readable once
  // that process has ended.
  std::int32_t pid(NodeId node) const;
  int open_process(std::int32_t pid);

  // Deterministic randomness of this run, for workloads that want to share it.
  double uniform();  // [0, 1)
  std::uint64_t below(std::uint64_t bound);

  // Every event folded into one number: equal runs, equal digests.
  std::uint64_t digest() const { return digest_; }
  const std::vector<std::string>& trace() const { return trace_; }
  // A line of the owner's in the trace, and in the digest. `text` is called when traced.
  template <typename Text>
  void say(std::uint64_t value, Text&& text) {
    fold(value);
    fold(static_cast<std::uint64_t>(now_ns()));
    if (options_.trace) trace_line(text());
  }
  // The observer outlives the world, or is taken back with null.
  void set_observer(Observer* observer) { observer_ = observer; }
  Observer* observer() const { return observer_; }

  // For Links and nets.
  Port port(NodeId node, std::uint32_t device);
  bool alive(const Port& port) const;
  bool usable(const Port& port) const {  // … and its device lives
    return alive(port) && !dead_devices_.contains({port.node, port.device});
  }
  // Carries a packet: `arrived` runs at the destination, or `lost` at the sender once every try has
  // failed. A packet of a dead sender disappears. `repeats`: it may arrive twice
  // (SimOptions::duplicate), and the receiver filters that.
  void transmit(const Port& from, const Port& to, std::uint64_t bytes, Action arrived, Action lost,
                bool repeats = false);
  void record(std::string_view what, const Port& from, const Port& to, std::uint64_t value);
  // Whether bytes of a process that has died may still land.
  bool outlives(const Port& from) const {
    return options_.fence == Fence::immediate || alive(from);
  }
  std::uint64_t add_link(SimLink* link);
  void remove_link(std::uint64_t id) { links_.erase(id); }
  SimLink* link(std::uint64_t id) const;
  void add_net(NodeId node, SimControlNet* net) { nets_[node] = net; }
  void remove_net(NodeId node, SimControlNet* net);
  SimControlNet* net(NodeId node) const;

 private:
  struct Node {
    std::uint32_t life = 1;
    bool up = true;
  };
  struct Scheduled {
    std::int64_t at_ns;
    std::uint64_t sequence;  // equal times keep their order
    Action action;
    bool operator<(const Scheduled& o) const {  // for a heap with the earliest on top
      return at_ns != o.at_ns ? at_ns > o.at_ns : sequence > o.sequence;
    }
  };
  void attempt(const Port& from, const Port& to, std::uint64_t bytes, Action arrived, Action lost,
               int tries, bool repeats);
  bool passes(const Port& from, const Port& to) const;
  void stir(NodeId node) {
    if (observer_ != nullptr) observer_->stirred(node);
  }
  void fold(std::uint64_t word) {
    digest_ = (digest_ ^ word) * 0x9E3779B97F4A7C15U;
    digest_ ^= digest_ >> 29;
  }
  void trace_line(const std::string& text);

  SimOptions options_;
  VirtualClock clock_;
  std::mt19937_64 random_;
  std::vector<Scheduled> queue_;  // heap
  std::uint64_t sequence_ = 0;
  std::map<NodeId, Node> nodes_;
  std::map<std::pair<NodeId, std::uint32_t>, std::int64_t> busy_until_;  // by node, device
  std::map<std::pair<NodeId, NodeId>, std::int64_t> clogged_until_;
  std::set<std::pair<NodeId, NodeId>> cut_;
  std::set<std::pair<NodeId, std::uint32_t>> dead_devices_;
  std::map<std::uint64_t, SimLink*> links_;
  std::uint64_t links_added_ = 0;
  std::map<NodeId, SimControlNet*> nets_;
  std::vector<std::pair<std::int32_t, int>> watched_;  // processes by pid: copies of descriptors
  Observer* observer_ = nullptr;
  std::uint64_t digest_ = 0;
  std::vector<std::string> trace_;
};

}  // namespace kvl::sim
