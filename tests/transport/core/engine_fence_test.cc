// What the engine may say of a lost rail and of a lost peer, and when: two engines over Links that
// do what the test says, in virtual time.
#include <gtest/gtest.h>

#include "tests/transport/core/rig.h"

namespace kvl {
namespace {

using test::kHeartbeatMs;
using test::kLongMs;
using test::kPeerTimeoutMs;
using test::Rig;
using test::ScriptedLink;
using Kind = EngineEvent::Kind;

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
