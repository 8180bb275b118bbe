// One simulated process: an engine, a handoff endpoint, a page pool and a rendezvous client, and
// the loop that an inference engine would run around them. It checks what it is told as it goes.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kvl/block_pool.h"
#include "kvl/engine.h"
#include "kvl/handoff.h"
#include "tools/sim/judge.h"
#include "tools/sim/kv_memory.h"
#include "tools/sim/rendezvous.h"
#include "tools/sim/scenario.h"
#include "transport/sim/sim_world.h"

namespace kvl::simulation {

// Of the world, but set wrong and a little too fast or slow.
class SkewedClock final : public Clock {
 public:
  SkewedClock(const Clock& base, std::int64_t offset_ns, std::int64_t drift_ppm)
      : base_(base), offset_ns_(offset_ns), drift_ppm_(drift_ppm) {}
  std::int64_t now_ns() const override {
    const std::int64_t now = base_.now_ns();
    return now + offset_ns_ + now / 1'000'000 * drift_ppm_;
  }

 private:
  const Clock& base_;
  const std::int64_t offset_ns_, drift_ppm_;
};

// What the processes of a run share.
struct Stage {
  sim::SimWorld& world;
  const Scenario& scenario;
  Judge& judge;
  RendezvousServer& rendezvous;
  const Settings& settings;
};

class RankProcess {
 public:
  RankProcess(Stage& stage, sim::NodeId node, HandoffSide side, std::uint32_t instance,
              std::uint32_t rank);
  ~RankProcess();

  sim::NodeId node() const { return node_; }
  HandoffSide side() const { return side_; }
  std::uint32_t instance() const { return instance_; }
  std::uint32_t rank() const { return rank_; }
  std::string name() const;
  bool up() const { return engine_ != nullptr; }

  // False: it could not start just now (every device is dead).
  bool start();
  void crash(sim::Crash kind);

  // A request has come from the router.
  void begin(const Request& request);
  void abort(const Request& request);
  // One turn of its loop.
  void run();
  // The world's time when it has something to do by itself.
  std::int64_t next_ns() const { return next_ns_; }
  // It was not scheduled for so long: deadlines move.
  void excuse(std::int64_t ns) { excused_ns_ += ns; }

  std::string touch(sim::Touch touch, const std::byte* data, std::uint64_t bytes,
                    const RankProcess& other) const;
  // No request is being worked on; those that failed may still hold pages.
  bool idle() const { return busy_ == 0; }
  // Why not everything is back at zero; "" when it is.
  std::string leftovers() const;
  // What must hold at the very end, after leftovers() is "".
  std::string check_end() const;

 private:
  // This rank's part in one request.
  struct Part {
    enum class State : std::uint8_t { waiting, open, using_pages, unsafe, ended };
    const Request* request = nullptr;
    State state = State::waiting;
    std::int64_t next_ns = 0;               // of its owner's next action, world time
    std::int64_t due_ns = 0;                // world time, without excuses
    std::int64_t excused_ns = 0;            // of the process, when it was opened
    std::uint64_t computed = 0, paged = 0;  // prefill: tokens of all layers; pages named
    std::uint32_t layer = 0;                // prefill: the next to compute
    bool all_sent = false;                  // prefill: finish() was called
    LeaseId lease;
    QuarantineToken quarantine;
    std::vector<std::uint32_t> pages;
    std::uint64_t first_token = 0;
    std::uint32_t layers_told = 0;
  };

  bool reserve(Part& part, std::uint64_t first_token);
  void advance(Part& part);
  void open_decode(Part& part);
  void open_prefill(Part& part);
  void compute(Part& part);
  void watch(const EngineEvent& event);
  void take(const HandoffEvent& event);
  void end(Part& part, bool safe);
  void release(Part& part);
  void set_state(Part& part, Part::State state);
  void violate(const std::string& what);
  std::string instance_name(HandoffSide side, std::uint32_t instance) const;
  std::uint64_t room_tokens(const Part& part) const { return part.request->tokens; }

  Stage& stage_;
  const sim::NodeId node_;
  const HandoffSide side_;
  const std::uint32_t instance_, rank_;
  const Side& shape_;
  const PageLayout layout_;
  const SkewedClock clock_;
  std::uint64_t lives_ = 0;
  std::int64_t excused_ns_ = 0;
  std::int64_t next_ns_ = 0;

  // Of this life. The memory outlives the engine, which outlives nothing of the endpoint's.
  std::unique_ptr<KvMemory> memory_;
  std::unique_ptr<BlockPool> pool_;
  std::unique_ptr<HandoffEndpoint> endpoint_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<RendezvousClient> client_;
  std::map<std::uint64_t, Part> parts_;            // by room
  std::uint32_t busy_ = 0;                         // parts that are waiting, open or in use
  std::map<std::uint64_t, std::uint64_t> epochs_;  // of peers, by handle
  std::vector<EngineEvent> engine_events_;
  std::vector<HandoffEvent> handoff_events_;
};

}  // namespace kvl::simulation
