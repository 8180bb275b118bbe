// The engine over libfabric's Link over a fake EFA whose packets are the simulator's: delay, loss,
// partitions, dead devices, crashes and restarts, in virtual time.
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "tests/support/log_guard.h"
#include "tests/transport/libfabric/fake_provider.h"
#include "tools/sim/run.h"
#include "transport/libfabric/fabric_transport.h"

namespace kvl::simulation {
namespace {

class SimulatedWire final : public test::FakeWire {
 public:
  explicit SimulatedWire(sim::SimWorld& world) : world_(world) {}
  test::FakePlace place(std::uint32_t host, std::uint32_t device) override {
    return {host, device, world_.port(host, device).life};
  }
  bool usable(const test::FakePlace& place) override { return world_.usable(port(place)); }
  void carry(const test::FakePlace& from, const test::FakePlace& to, std::uint64_t bytes,
             std::function<void()> arrived, std::function<void()> lost) override {
    const auto packet = std::make_shared<Packet>(*this, std::move(lost));
    world_.transmit(
        port(from), port(to), bytes,
        [packet, arrived = std::move(arrived)] {
          packet->lost = nullptr;
          arrived();
        },
        [packet] { std::exchange(packet->lost, nullptr)(); });
  }
  void end() { ended_ = true; }  // the world goes away

 private:
  static constexpr std::int64_t kGiveUpNs = 20'000'000;
  // What a node sends as it dies is forgotten by the world; the device that waits for it gives up.
  struct Packet {
    Packet(SimulatedWire& owner, std::function<void()> when_lost)
        : wire(owner), lost(std::move(when_lost)) {}
    ~Packet() {
      if (lost && !wire.ended_) wire.world_.after(kGiveUpNs, std::move(lost));
    }
    SimulatedWire& wire;
    std::function<void()> lost;
  };
  static sim::Port port(const test::FakePlace& place) {
    return {place.host, place.device, place.life};
  }
  sim::SimWorld& world_;
  bool ended_ = false;
};

// One provider for a run; the nodes are its hosts.
struct Fabric {
  explicit Fabric(std::uint64_t run_seed) : seed(run_seed) {}
  MakeTransport over(sim::SimWorld& world) {
    wire = std::make_unique<SimulatedWire>(world);
    test::FakeOptions options;
    options.seed = seed;
    options.segment_bytes = 4096;
    options.rma_bytes_max = 64 << 10;
    options.wakes = false;  // nobody sleeps in virtual time
    provider = std::make_unique<test::FakeProvider>(options, wire.get());
    const std::shared_ptr<void> until(nullptr, [this](void*) { wire->end(); });
    return [this, until](sim::NodeId node, std::uint32_t devices) {
      provider->options.devices = devices;
      libfabric::FabricConfig config;
      config.connect_timeout_ms = 300;
      config.close_timeout_ms = 100;
      config.probe_ms = 50;
      return libfabric::make_transport(config, provider->api(node));
    };
  }
  std::string violation() const {
    const auto all = provider->violations();
    return all.empty() ? "" : all.front();
  }

  const std::uint64_t seed;
  std::unique_ptr<SimulatedWire> wire;
  std::unique_ptr<test::FakeProvider> provider;
};

std::uint64_t number_of(const char* name, std::uint64_t usual) {
  const char* const text = std::getenv(name);
  return text == nullptr ? usual : std::strtoull(text, nullptr, 10);
}
std::uint64_t runs() { return number_of("KVL_SIM_RUNS", 25); }
std::uint64_t first_seed() { return number_of("KVL_SIM_SEED", 1); }

struct Outcome {
  RunReport report;
  std::string violation;
};
Outcome run_over_fabric(std::uint64_t seed, bool faults) {
  Fabric fabric(seed);
  RunOptions options;
  options.seed = seed;
  options.world = World::engines;
  options.faults = faults;
  options.trace = std::getenv("KVL_SIM_TRACE") != nullptr;
  options.engines = 2 + static_cast<std::uint32_t>(seed % 3);
  options.transport = [&](sim::SimWorld& world) { return fabric.over(world); };
  Outcome result{run(options), ""};
  for (const std::string& line : result.report.trace) std::printf("%s\n", line.c_str());
  result.violation = fabric.violation();
  return result;
}

struct FabricSim : testing::Test {
  test::ExpectLog losses{"libfabric."};
  test::ExpectLog unreachable{"peer.no_common_transport"};
  test::ExpectLog late{"control.refused"};
  test::ExpectLog rails{"rail."};
};

TEST_F(FabricSim, WithoutFaultsEverythingArrives) {
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    const Outcome run = run_over_fabric(seed, false);
    ASSERT_TRUE(run.report.ok) << "seed " << seed << ": " << run.report.violation;
    ASSERT_EQ(run.violation, "") << "seed " << seed;
    EXPECT_EQ(run.report.quarantined, 0U);
    EXPECT_GT(run.report.done, 0U);
  }
}

TEST_F(FabricSim, WithFaultsNothingIsWrongAndEverythingEnds) {
  std::uint64_t done = 0, failed = 0;
  for (std::uint64_t seed = first_seed(); seed < first_seed() + runs(); ++seed) {
    const Outcome run = run_over_fabric(seed, true);
    ASSERT_TRUE(run.report.ok) << "seed " << seed << ": " << run.report.violation;
    ASSERT_EQ(run.violation, "") << "seed " << seed;
    done += run.report.done;
    failed += run.report.failed;
  }
  EXPECT_GT(done, 0U);
  EXPECT_GT(failed, 0U);
}

}  // namespace
}  // namespace kvl::simulation
