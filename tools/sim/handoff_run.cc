// The serving world: prefill and decode instances, a rendezvous, requests and faults in virtual
// time.
//
// Checked at every step: the fabric touches only pages of the request it works for, and none that
// is free or committed; every byte is right when a layer or a commit is told and while decode uses
// it; every part of a request ends once and in its deadline; decode ranks commit together; nobody
// owns a page twice; leases and epochs. At the end, with everything healed, nothing is left
// anywhere.
#include <algorithm>
#include <deque>
#include <memory>
#include <random>

#include "tools/sim/judge.h"
#include "tools/sim/rank_process.h"
#include "tools/sim/rendezvous.h"
#include "tools/sim/run.h"
#include "tools/sim/scenario.h"
#include "transport/sim/sim_world.h"

namespace kvl::simulation {
namespace {

constexpr std::int64_t kSettleNs = 30'000 * kMs;
constexpr std::uint64_t kStepsMax = 20'000'000;

Settings engine_settings_of(const Scenario& scenario) {
  Settings::Source source;
  source.environment = false;
  source.flags = scenario.engine_flags;
  return Settings::load(engine_settings(), source).value();
}

class Cluster final : public sim::Observer {
 public:
  explicit Cluster(const RunOptions& options)
      : options_(options),
        scenario_(make_scenario(options)),
        settings_(engine_settings_of(scenario_)),
        world_(scenario_.network),
        random_(options.seed * 7919 + 1),
        judge_(world_, scenario_),
        rendezvous_clock_(world_.clock(), 5000 * kMs, 300),
        rendezvous_(world_, process_count(), rendezvous_clock_, scenario_,
                    [this](const std::string& what) { judge_.violate(what); }),
        stage_{world_, scenario_, judge_, rendezvous_, settings_} {
    add(HandoffSide::prefill, scenario_.prefill);
    add(HandoffSide::decode, scenario_.decode);
    world_.set_observer(this);
    for (std::size_t i = 0; i < processes_.size(); ++i) start(i);
    for (const Request& request : scenario_.requests) {
      world_.after(request.at_ns, [this, &request] { send(request); });
    }
    for (const Fault& fault : scenario_.faults) {
      world_.after(at_of(fault), [this, &fault] { inflict(fault); });
    }
  }
  ~Cluster() override {
    world_.set_observer(nullptr);
    processes_.clear();
  }

  RunReport run() {
    const auto busy = [this] {
      return sent_ < scenario_.requests.size() ||
             !std::ranges::all_of(processes_, [](const auto& p) { return p->idle(); });
    };
    while (judge_.violation().empty() && busy()) step();
    calm();
    const std::int64_t end_ns = world_.now_ns() + kSettleNs;
    std::string left = leftovers();
    while (judge_.violation().empty() && !left.empty()) {
      if (world_.now_ns() > end_ns) judge_.violate("leak: " + left);
      for (int i = 0; i < 64; ++i) step();
      left = leftovers();
    }
    for (const auto& process : processes_) {
      if (!judge_.violation().empty()) break;
      const std::string wrong = process->check_end();
      if (!wrong.empty()) judge_.violate(wrong);
    }
    if (!options_.faults) judge_.check_all_done();
    return report();
  }

  void stirred(sim::NodeId node) override {
    if (node >= turns_.size()) return;
    Turn& turn = turns_[node];
    std::int64_t delay_ns = scenario_.latency_ns;
    if (delay_ns > 0)
      delay_ns =
          static_cast<std::int64_t>(below(2 * static_cast<std::uint64_t>(scenario_.latency_ns)));
    if (world_.now_ns() < turn.slow_until_ns) delay_ns = static_cast<std::int64_t>(below(8)) * kMs;
    turn.wake_ns = std::min(turn.wake_ns, world_.now_ns() + delay_ns);
  }
  void touched(sim::NodeId node, sim::Touch touch, const std::byte* data, std::uint64_t bytes,
               sim::NodeId other) override {
    const std::string wrong = processes_[node]->touch(touch, data, bytes, *processes_[other]);
    if (!wrong.empty()) judge_.violate(wrong);
  }

 private:
  struct Turn {
    std::int64_t wake_ns = 0;
    std::int64_t stopped_until_ns = 0, slow_until_ns = 0;
  };

  std::uint32_t process_count() const {
    return scenario_.prefill.instances * scenario_.prefill.ranks() +
           scenario_.decode.instances * scenario_.decode.ranks();
  }
  void add(HandoffSide side, const Side& shape) {
    for (std::uint32_t instance = 0; instance < shape.instances; ++instance) {
      for (std::uint32_t rank = 0; rank < shape.ranks(); ++rank) {
        processes_.push_back(std::make_unique<RankProcess>(
            stage_, static_cast<sim::NodeId>(processes_.size()), side, instance, rank));
        turns_.emplace_back();
      }
    }
  }
  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }

  // The next thing that happens: an event of the network, or a process's turn.
  void step() {
    if (++steps_ > kStepsMax) judge_.violate("endless: the run does not end");
    std::size_t first = 0;
    std::int64_t first_ns = INT64_MAX;
    for (std::size_t i = 0; i < turns_.size(); ++i) {
      const std::int64_t at_ns = std::max(turns_[i].wake_ns, turns_[i].stopped_until_ns);
      if (at_ns < first_ns) first = i, first_ns = at_ns;
    }
    if (world_.next_event_ns() <= first_ns) {
      world_.step();
      return;
    }
    world_.run_until(first_ns);
    processes_[first]->run();
    turns_[first].wake_ns = processes_[first]->up() ? processes_[first]->next_ns() : INT64_MAX;
  }

  void start(std::size_t index) {
    if (!processes_[index]->start()) {
      world_.after(20 * kMs, [this, index] { start(index); });
      return;
    }
    turns_[index] = {world_.now_ns(), 0, 0};
  }
  // The router's word reaches the ranks one after the other.
  void send(const Request& request) {
    ++sent_;
    world_.say(request.room, [&] {
      return "request " + std::to_string(request.number) + ": room " +
             std::to_string(request.room) + ", " + std::string(to_string(request.mode)) + ", " +
             std::to_string(request.tokens) + " tokens, " + std::to_string(request.skip_tokens) +
             " skipped, prefill-" + std::to_string(request.prefill) + " to decode-" +
             std::to_string(request.decode) + ", " + std::to_string(request.deadline_ms) + " ms";
    });
    for_ranks(request, HandoffSide::prefill, [&](RankProcess& p) { begin(p, request); });
    for_ranks(request, HandoffSide::decode, [&](RankProcess& p) { begin(p, request); });
  }
  void begin(RankProcess& process, const Request& request) {
    process.begin(request);
    Turn& turn = turns_[process.node()];
    turn.wake_ns =
        std::min(turn.wake_ns, world_.now_ns() + static_cast<std::int64_t>(below(300'000)));
  }
  template <typename F>
  void for_ranks(const Request& request, HandoffSide side, F&& f) {
    const std::uint32_t instance = side == HandoffSide::prefill ? request.prefill : request.decode;
    for (const auto& process : processes_) {
      if (process->side() == side && process->instance() == instance) f(*process);
    }
  }

  const Request* victim(const Fault& fault) const {
    return scenario_.requests.empty() ? nullptr
                                      : &scenario_.requests[fault.c % scenario_.requests.size()];
  }
  // An abort must meet its request to matter.
  std::int64_t at_of(const Fault& fault) const {
    const Request* const request = victim(fault);
    if (fault.kind != FaultKind::abort || request == nullptr) return fault.at_ns;
    return request->at_ns + fault.duration_ns / 20;
  }

  void inflict(const Fault& fault) {
    const auto a = static_cast<sim::NodeId>(fault.a % processes_.size());
    // The last node is the rendezvous.
    auto b = static_cast<sim::NodeId>(fault.b % processes_.size());
    if (b >= a) ++b;
    world_.say(fault.number, [&] {
      return "fault " + std::to_string(fault.number) + ": " + std::string(to_string(fault.kind)) +
             " at " + name_of(a) + ", with " + name_of(b) + ", " +
             std::to_string(fault.duration_ns / kMs) + " ms";
    });
    switch (fault.kind) {
      case FaultKind::partition:
        world_.partition(a, b);
        world_.after(fault.duration_ns, [this, a, b] { world_.heal(a, b); });
        return;
      case FaultKind::one_way:
        world_.partition_one_way(a, b);
        world_.after(fault.duration_ns, [this, a, b] { world_.heal(a, b); });
        return;
      case FaultKind::clog:
        return world_.clog(a, b, fault.duration_ns);
      case FaultKind::nic: {
        const auto device = static_cast<std::uint32_t>(fault.c % scenario_.devices);
        world_.kill_device(a, device);
        world_.after(fault.duration_ns, [this, a, device] { world_.revive_device(a, device); });
        return;
      }
      case FaultKind::lanes:
        world_.break_lanes(a, b);
        if (fault.c % 2 == 0) world_.break_lanes(b, a);
        return;
      case FaultKind::crash:
      case FaultKind::machine:
        if (!processes_[a]->up()) return;
        ++crashes_;
        processes_[a]->crash(fault.kind == FaultKind::crash ? sim::Crash::process
                                                            : sim::Crash::machine);
        turns_[a].wake_ns = INT64_MAX;
        world_.after(fault.duration_ns, [this, a] { start(a); });
        return;
      case FaultKind::stop: {
        Turn& turn = turns_[a];
        turn.stopped_until_ns =
            std::max(turn.stopped_until_ns, world_.now_ns() + fault.duration_ns);
        processes_[a]->excuse(fault.duration_ns);
        return;
      }
      case FaultKind::slow:
        turns_[a].slow_until_ns = world_.now_ns() + fault.duration_ns;
        processes_[a]->excuse(10 * kMs);
        return;
      case FaultKind::abort: {
        const Request* const request = victim(fault);
        if (request == nullptr) return;
        const HandoffSide side = fault.a % 2 == 0 ? HandoffSide::prefill : HandoffSide::decode;
        std::uint64_t only = fault.b % 4;  // one rank, or all
        for_ranks(*request, side, [&](RankProcess& p) {
          if (fault.b % 8 < 4 || only-- == 0) abort(p, *request);
        });
        return;
      }
      case FaultKind::rendezvous:
        rendezvous_.crash();
        world_.after(fault.duration_ns, [this] { rendezvous_.start(); });
        return;
    }
  }
  void abort(RankProcess& process, const Request& request) {
    process.abort(request);
    turns_[process.node()].wake_ns = world_.now_ns();
  }
  std::string name_of(sim::NodeId node) const {
    return node < processes_.size() ? processes_[node]->name() : "the rendezvous";
  }

  // Everything works again.
  void calm() {
    world_.say(0, [] { return "everything is healed"; });
    world_.options().drop = world_.options().duplicate = world_.options().corrupt = 0;
    world_.options().reorder = 0;
    world_.heal_all();
    world_.unclog_all();
    world_.revive_all();
    rendezvous_.start();
    for (std::size_t i = 0; i < processes_.size(); ++i) {
      turns_[i].slow_until_ns = 0;
      turns_[i].stopped_until_ns = std::min(turns_[i].stopped_until_ns, world_.now_ns());
      if (!processes_[i]->up()) start(i);
    }
  }
  std::string leftovers() const {
    for (const auto& process : processes_) {
      std::string left = process->leftovers();
      if (!left.empty()) return left;
    }
    return {};
  }

  RunReport report() {
    RunReport report;
    report.violation = judge_.violation();
    report.ok = report.violation.empty();
    report.digest = world_.digest();
    report.steps = steps_;
    report.virtual_ns = world_.now_ns();
    report.crashes = crashes_;
    report.faults = static_cast<std::uint32_t>(scenario_.faults.size());
    judge_.count(report);
    report.trace = world_.trace();
    return report;
  }

  const RunOptions options_;
  const Scenario scenario_;
  const Settings settings_;
  sim::SimWorld world_;
  std::mt19937_64 random_;
  Judge judge_;
  const SkewedClock rendezvous_clock_;
  RendezvousServer rendezvous_;
  Stage stage_;
  std::vector<std::unique_ptr<RankProcess>> processes_;
  std::vector<Turn> turns_;
  std::uint64_t steps_ = 0;
  std::size_t sent_ = 0;
  std::uint32_t crashes_ = 0;
};

}  // namespace

RunReport run_serving(const RunOptions& options) { return Cluster(options).run(); }

}  // namespace kvl::simulation
