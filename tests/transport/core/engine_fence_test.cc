// What the engine may say of a lost rail and of a lost peer, and when: two engines over Links that
// do what the test says, in virtual time.
#include <gtest/gtest.h>

#include <deque>
#include <optional>

#include "kvl/engine.h"
#include "tests/transport/core/scripted_transport.h"
#include "transport/sim/sim_control_net.h"
#include "transport/sim/sim_world.h"

namespace kvl {
namespace {

using Kind = EngineEvent::Kind;
using test::ScriptedLink;
using test::ScriptedTransport;

constexpr std::int64_t kMs = 1'000'000;
constexpr std::int64_t kLongMs = 3000;  // longer than any pause of the engine below
constexpr std::int64_t kHeartbeatMs = 100, kPeerTimeoutMs = 500;

struct Options {
  std::size_t devices = 1;
  Fence fence = Fence::immediate;
  bool sees_processes = false;
};

// Engine 0 has dialed engine 1, and both have registered a buffer.
class Rig {
 public:
  explicit Rig(const Options& options) : options_(options) {
    for (std::uint32_t i = 0; i < 2; ++i) open(i);
    peer_ = engine(0).connect(sim::SimControlNet::address_of(1)).value();
    EXPECT_TRUE(until([&] { return has(0, Kind::peer_up) && has(1, Kind::peer_up); }));
    run(100);  // the announcements of memory follow
    events_[0].clear();
    events_[1].clear();
  }

  sim::SimWorld& world() { return world_; }
  Engine& engine(std::size_t at) { return *engines_[at]; }
  ScriptedLink& link(std::size_t at, std::size_t index = 0) { return transports_[at]->link(index); }

  // Engine 1 stands still from now on: its connections live, it says nothing.
  void stop_other() { driven_ = 1; }
  void step() {
    world_.advance(kMs);
    for (std::size_t i = 0; i < driven_; ++i) {
      EngineEvent taken[16];
      const std::size_t count = engines_[i]->poll(taken);
      for (std::size_t k = 0; k < count; ++k) events_[i].push_back(std::move(taken[k]));
    }
  }
  void run(std::int64_t ms) {
    for (; ms > 0; --ms) step();
  }
  // False: not within the (virtual) time.
  template <typename Condition>
  bool until(Condition condition, std::int64_t most_ms = kLongMs) {
    for (std::int64_t ms = 0; ms < most_ms; ++ms) {
      if (condition()) return true;
      step();
    }
    return condition();
  }
  bool has(std::size_t at, Kind kind) const {
    return std::ranges::any_of(events_[at], [kind](const auto& e) { return e.kind == kind; });
  }
  // The next event of the kind, removed; nothing when it does not come in time.
  std::optional<EngineEvent> next(std::size_t at, Kind kind, std::int64_t most_ms = kLongMs) {
    if (!until([&] { return has(at, kind); }, most_ms)) return std::nullopt;
    const auto found = std::ranges::find(events_[at], kind, &EngineEvent::kind);
    EngineEvent event = std::move(*found);
    events_[at].erase(found);
    return event;
  }

  // One piece, from engine 0 to engine 1.
  void write() {
    Transfer transfer;
    transfer.peer = peer_;
    transfer.ops = {&op_, 1};
    transfer.locals = {&handles_[0], 1};
    transfer.remotes = {&handles_[1], 1};
    transfer.timeout_ms = 60'000;
    ASSERT_TRUE(engine(0).submit(transfer).ok());
  }

 private:
  void open(std::uint32_t index) {
    Settings::Source source;
    source.environment = false;
    source.flags = {{"progress", "caller"},
                    {"pieces_inflight", "1"},
                    {"heartbeat_ms", std::to_string(kHeartbeatMs)},
                    {"peer_timeout_ms", std::to_string(kPeerTimeoutMs)},
                    {"reconnect_ms", "20"},
                    {"connect_timeout_ms", "1000"}};
    EngineWorld world;
    world.clock = &world_.clock();
    world.control = std::make_unique<sim::SimControlNet>(world_, index);
    auto transport = std::make_unique<ScriptedTransport>(options_.devices, options_.fence);
    transports_[index] = transport.get();
    world.transports.push_back(std::move(transport));
    world.seed = 1 + index;
    world.pid = world_.pid(index);
    world.open_process = [this](std::int32_t pid) {
      return options_.sees_processes ? world_.open_process(pid) : -1;
    };
    engines_[index] =
        Engine::open(Settings::load(engine_settings(), source).value(), std::move(world)).value();
    Memory memory;
    memory.data = memory_[index];
    memory.bytes = sizeof(memory_[index]);
    memory.access = Access::remote_all;
    handles_[index] = engine(index).register_memory(memory).value();
  }

  const Options options_;
  std::size_t driven_ = 2;
  sim::SimWorld world_{sim::SimOptions{}};
  std::byte memory_[2][4096] = {};
  PageOp op_{.bytes = 4096};
  ScriptedTransport* transports_[2] = {};
  std::unique_ptr<Engine> engines_[2];
  std::deque<EngineEvent> events_[2];
  MemoryHandle handles_[2];
  PeerHandle peer_;
};

// The bytes are there, by the second rail, but those of the first may still be on their way: the
// target's pages would change under whoever got them next.
TEST(EngineFence, ARetriedWriteEndsWhenTheLostRailIsProvenClosed) {
  Rig rig({.devices = 2});
  rig.write();
  ASSERT_TRUE(rig.until([&] { return rig.link(0, 0).posted() + rig.link(0, 1).posted() == 1; }));
  const std::size_t first = rig.link(0, 0).posted() == 1 ? 0 : 1;
  ScriptedLink& there = rig.link(1, first);
  there.hold_closed = true;
  rig.link(0, first).lose(Code::peer_lost);
  ASSERT_TRUE(rig.until([&] { return rig.link(0, 1 - first).posted() == 1; })) << "not tried again";
  rig.link(0, 1 - first).finish(Code::ok);
  rig.run(kLongMs);
  EXPECT_FALSE(rig.has(0, Kind::transfer)) << "ended while the lost rail could still write";
  there.let_go(Code::aborted);
  const auto done = rig.next(0, Kind::transfer);
  ASSERT_TRUE(done.has_value());
  EXPECT_EQ(done->code, Code::ok);
  EXPECT_EQ(done->physical, Physical::quiescent);
}

// The Link has let go, but what it was sent may still land.
TEST(EngineFence, WithoutAFenceOfTheDeviceNothingButThePeersWordCounts) {
  for (const Fence fence : {Fence::none, Fence::av_remove}) {
    Rig rig({.fence = fence});
    rig.world().partition(0, 1);
    const auto down = rig.next(0, Kind::peer_down);
    ASSERT_TRUE(down.has_value());
    EXPECT_EQ(down->fenced, fence != Fence::none);
  }
}

// A Link that shows a peer_down before the ends of that peer's batches may do so.
TEST(EngineFence, ALateEndOfAnEarlierAttemptLeavesTheNewOneAlone) {
  Rig rig({});
  ScriptedLink& link = rig.link(0);
  rig.write();
  ASSERT_TRUE(rig.until([&] { return link.posted() == 1; }));
  link.hold_batches = true;
  link.lose(Code::peer_lost);
  rig.run(10);
  EXPECT_EQ(link.peers(), 0U);
  ASSERT_TRUE(rig.until([&] { return link.peers() == 1; })) << "the rail did not come back";
  rig.run(10);
  link.end_lost(Code::peer_lost);
  // The pair has room for one piece: this one, then the next.
  ASSERT_TRUE(rig.until([&] { return link.posted() == 1; })) << "not tried again";
  rig.write();
  rig.run(10);
  EXPECT_EQ(link.posted(), 1U) << "more pieces than pieces_inflight";
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(rig.until([&] { return link.posted() == 1; }));
    link.finish(Code::ok);
    const auto done = rig.next(0, Kind::transfer);
    ASSERT_TRUE(done.has_value());
    EXPECT_EQ(done->code, Code::ok);
  }
}

// Its kernel answers for it, so that no connection breaks: only its silence tells.
TEST(EngineLiveness, ASilentPeerIsLostInItsTime) {
  Rig rig({});
  rig.write();
  rig.run(10 * kPeerTimeoutMs);
  EXPECT_FALSE(rig.has(0, Kind::peer_down)) << "heartbeats are no silence";
  rig.stop_other();
  rig.run(kPeerTimeoutMs - 2 * kHeartbeatMs);
  EXPECT_FALSE(rig.has(0, Kind::peer_down)) << "too early";
  rig.run(2 * kHeartbeatMs + 50);
  const auto down = rig.next(0, Kind::peer_down, 0);
  ASSERT_TRUE(down.has_value()) << "too late";
  EXPECT_EQ(down->code, Code::peer_lost);
  const auto transfer = rig.next(0, Kind::transfer, 0);
  ASSERT_TRUE(transfer.has_value());
  EXPECT_EQ(transfer->code, Code::peer_lost);
  EXPECT_EQ(transfer->physical, Physical::quarantined) << "who should have proven anything?";
}

// Where a writer is a CPU inside our memory, its peer is fenced when the Link says so, or when its
// process is gone; and what one connection of a life has left open, no later one closes.
class ProcessFence : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(All, ProcessFence, testing::Bool(), [](const auto& sees) {
  return std::string(sees.param ? "processSeen" : "processNotSeen");
});

TEST_P(ProcessFence, APeerThatHasLetGoIsFenced) {
  Rig rig({.fence = Fence::process_exit, .sees_processes = GetParam()});
  rig.world().partition(0, 1);
  const auto down = rig.next(0, Kind::peer_down);
  ASSERT_TRUE(down.has_value());
  EXPECT_TRUE(down->fenced);
}

TEST_P(ProcessFence, APeerThatIsStuckInsideIsNotFencedByALaterConnection) {
  Rig rig({.fence = Fence::process_exit, .sees_processes = GetParam()});
  ScriptedLink& link = rig.link(0);
  link.hold_closed = true;
  rig.world().partition(0, 1);
  ASSERT_TRUE(rig.until([&] { return link.peers() == 0; }));
  rig.run(100);
  EXPECT_FALSE(rig.has(0, Kind::peer_down)) << "before the Link has let go";
  link.let_go(Code::timed_out);
  const auto stuck = rig.next(0, Kind::peer_down);
  ASSERT_TRUE(stuck.has_value());
  EXPECT_FALSE(stuck->fenced) << "its writes may land until its process is gone";

  link.hold_closed = false;
  rig.world().heal_all();
  ASSERT_TRUE(rig.next(0, Kind::peer_up).has_value());
  rig.world().partition(0, 1);
  const auto clean = rig.next(0, Kind::peer_down);
  ASSERT_TRUE(clean.has_value());
  EXPECT_EQ(clean->epoch, stuck->epoch);
  EXPECT_FALSE(clean->fenced) << "an earlier connection of this life is still open";
  rig.run(kLongMs);
  EXPECT_FALSE(rig.has(0, Kind::peer_down));

  rig.world().crash(1, sim::Crash::process);
  const auto gone = rig.next(0, Kind::peer_down);
  EXPECT_EQ(gone.has_value(), GetParam());
  EXPECT_TRUE(!gone.has_value() || gone->fenced);
}

}  // namespace
}  // namespace kvl
