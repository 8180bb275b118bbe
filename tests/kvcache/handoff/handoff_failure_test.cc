// Handoffs that end badly: every stage, every cause, both modes; and who may reuse pages when.
#include <gtest/gtest.h>

#include <string>

#include "tests/kvcache/handoff/cluster.h"

namespace kvl::test {
namespace {

enum class Stage { decode_waits, prefill_waits, accepted, moving, finished };
enum class Cause { abort_prefill, abort_decode, down_fenced, down_unfenced, silence, deadline };

constexpr Stage kStages[] = {Stage::decode_waits, Stage::prefill_waits, Stage::accepted,
                             Stage::moving, Stage::finished};
constexpr Cause kCauses[] = {Cause::abort_prefill, Cause::abort_decode, Cause::down_fenced,
                             Cause::down_unfenced, Cause::silence,      Cause::deadline};

// Brings the request to the stage and leaves it there.
void bring_to(Cluster& cluster, const Request& request, Stage stage) {
  if (stage == Stage::decode_waits || stage == Stage::prefill_waits) {
    for (std::size_t p = 0; stage == Stage::prefill_waits && p < cluster.prefill_count(); ++p) {
      ASSERT_TRUE(cluster.open_prefill(request, p).ok());
    }
    for (std::size_t d = 0; stage == Stage::decode_waits && d < cluster.decode_count(); ++d) {
      ASSERT_TRUE(cluster.open_decode(request, d).ok());
    }
    cluster.run();
    return;
  }
  cluster.open_everywhere(request);
  cluster.run();
  if (stage == Stage::accepted) return;
  if (stage == Stage::moving) {
    cluster.world.hold_transfers = true;
    for (std::size_t p = 0; p < cluster.prefill_count(); ++p) {
      ASSERT_TRUE(cluster.ready(request, p, {0, 2}, request.tokens).ok());
    }
    cluster.run();
    return;
  }
  // Everything is on its way except decode's answer.
  cluster.world.on_message = [&cluster](std::size_t from, std::size_t, auto&) {
    return from < cluster.prefill_count();
  };
  cluster.finish_everywhere(request);
  cluster.run();
}

class HandoffFailures
    : public ::testing::TestWithParam<std::tuple<Stage, Cause, HandoffMode, bool>> {};

TEST_P(HandoffFailures, EndsOnceOnEachSideAndPagesOnlyWithProof) {
  const auto [stage, cause, mode, grouped] = GetParam();
  ClusterOptions options;
  if (grouped) {
    options.prefill = {2, 1};
    options.decode = {4, 1};
  }
  Cluster cluster(options);
  Request request = cluster.make_request(42, 18, 3, mode);
  request.deadline_ms = 1000;
  bring_to(cluster, request, stage);
  cluster.world.on_message = nullptr;
  // In the last stage decode ranks of a group have voted and wait; alone they have committed.
  const bool committed = stage == Stage::finished && !grouped;
  Code expected = Code::ok;
  std::size_t dead = 99;
  switch (cause) {
    case Cause::abort_prefill:
      expected = Code::unavailable;
      (void)cluster.prefill().endpoint->abort(HandoffSide::prefill, 42, expected, "told to");
      break;
    case Cause::abort_decode:
      expected = Code::aborted;
      (void)cluster.decode().endpoint->abort(HandoffSide::decode, 42);
      break;
    case Cause::down_fenced:
    case Cause::down_unfenced:
      expected = Code::peer_lost;
      cluster.world.break_link(0, cluster.decode_index(), cause == Cause::down_fenced);
      break;
    case Cause::silence:
    case Cause::deadline:
      expected = Code::timed_out;
      break;
  }
  if (cause == Cause::silence) {
    // Prefill hangs: alive for the engine, its owner never steps again.
    dead = 0;
    cluster.prefill(0).alive = false;
  }
  cluster.run();
  if (cause == Cause::silence || cause == Cause::deadline) cluster.advance_ms(1001);
  cluster.world.hold_transfers = false;
  cluster.run();
  cluster.advance_ms(1001);  // whoever never heard of the other

  for (std::size_t i = 0; i < cluster.world.size(); ++i) {
    const bool prefill = i < cluster.prefill_count();
    const Seen& seen = prefill ? cluster.seen_prefill(42, i)
                               : cluster.seen_decode(42, i - cluster.prefill_count());
    const bool opened =
        (prefill && stage != Stage::decode_waits) || (!prefill && stage != Stage::prefill_waits);
    if (i == dead || !opened) continue;
    ASSERT_EQ(seen.terminals(), 1) << i;
    if (committed && !prefill) {
      EXPECT_EQ(seen.committed, 1);
      continue;
    }
    EXPECT_EQ(seen.failed, 1) << i;
    if (!seen.safe) {
      // Only what the unfenced or silent peer could still touch.
      EXPECT_TRUE(cause == Cause::down_unfenced || cause == Cause::silence) << i << seen.reason;
    }
    if (stage >= Stage::accepted && !committed) {
      EXPECT_TRUE(seen.code == expected || seen.code == Code::timed_out)
          << i << " " << to_string(seen.code) << " " << seen.reason;
    }
  }
  if (cause == Cause::down_unfenced) {
    cluster.world.fence(cluster.decode_index(), 0);
    cluster.world.fence(0, cluster.decode_index());
    cluster.run();
  }
  if (cause == Cause::silence) {
    cluster.world.kill(0, true);
    cluster.run();
  }
  cluster.expect_nothing_open();  // so all pages were released
}

std::string failure_name(
    const ::testing::TestParamInfo<std::tuple<Stage, Cause, HandoffMode, bool>>& info) {
  constexpr const char* kStageNames[] = {"decodeWaits", "prefillWaits", "accepted", "moving",
                                         "finished"};
  constexpr const char* kCauseNames[] = {"abortPrefill", "abortDecode", "downFenced",
                                         "downUnfenced", "silence",     "deadline"};
  const auto [stage, cause, mode, grouped] = info.param;
  return std::string(kStageNames[static_cast<int>(stage)]) + "_" +
         kCauseNames[static_cast<int>(cause)] + "_" + std::string(to_string(mode)) +
         (grouped ? "_group" : "_pair");
}
INSTANTIATE_TEST_SUITE_P(All, HandoffFailures,
                         ::testing::Combine(::testing::ValuesIn(kStages),
                                            ::testing::ValuesIn(kCauses),
                                            ::testing::Values(HandoffMode::push, HandoffMode::pull),
                                            ::testing::Bool()),
                         failure_name);

class HandoffTrouble : public ::testing::TestWithParam<HandoffMode> {};
INSTANTIATE_TEST_SUITE_P(All, HandoffTrouble,
                         ::testing::Values(HandoffMode::push, HandoffMode::pull),
                         [](const auto& param) { return std::string(to_string(param.param)); });

// Decode's pages stay its problem until prefill's engine has stopped, and not a moment longer.
TEST_P(HandoffTrouble, PagesAreReleasedByTheOtherSidesWord) {
  Cluster cluster;
  const Request request = cluster.make_request(1, 16, 0, GetParam());
  bring_to(cluster, request, Stage::moving);
  ASSERT_TRUE(cluster.decode().endpoint->abort(HandoffSide::decode, 1).ok());
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(1).failed, 1);
  EXPECT_FALSE(cluster.seen_decode(1).safe);
  EXPECT_EQ(cluster.seen_prefill(1).failed, 1);
  EXPECT_FALSE(cluster.seen_prefill(1).safe);
  EXPECT_EQ(cluster.decode().endpoint->open_rooms(), 1U);
  // The room is still taken: its pages are.
  EXPECT_EQ(cluster.open_decode(request).code(), Code::invalid_argument);
  cluster.world.hold_transfers = false;
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(1).released, 1);
  EXPECT_EQ(cluster.seen_prefill(1).released, 1);
  cluster.expect_nothing_open();
}

// An engine that cannot prove that a write stopped: only the fence helps, however often one asks.
TEST(HandoffQuarantine, OnlyTheFenceReleases) {
  Cluster cluster;
  const Request request = cluster.make_request(1, 16);
  bring_to(cluster, request, Stage::moving);
  cluster.world.cancel_is_proven = [] { return false; };
  ASSERT_TRUE(cluster.prefill().endpoint->abort(HandoffSide::prefill, 1).ok());
  cluster.world.hold_transfers = false;
  cluster.run();
  EXPECT_TRUE(cluster.seen_prefill(1).safe);  // its own memory is only read
  EXPECT_EQ(cluster.seen_decode(1).failed, 1);
  EXPECT_FALSE(cluster.seen_decode(1).safe);
  cluster.advance_ms(60'000);  // prefill has forgotten the outcome by now
  cluster.world.break_link(0, 1, false);
  cluster.run();
  cluster.world.connect(0, 1);
  cluster.run();
  EXPECT_FALSE(cluster.seen_decode(1).safe) << "an unknown room is no proof";
  cluster.world.run_ghosts();
  cluster.world.fence(1, 0);
  cluster.run();
  EXPECT_TRUE(cluster.seen_decode(1).safe);
  cluster.expect_nothing_open();
}

// The connection breaks, comes back with the same processes, and decode asks again.
TEST_P(HandoffTrouble, AsksAgainAfterAReconnect) {
  Cluster cluster;
  const Request request = cluster.make_request(1, 16, 0, GetParam());
  bring_to(cluster, request, Stage::accepted);
  cluster.world.break_link(0, 1, false);
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(1).code, Code::peer_lost);
  const bool push = GetParam() == HandoffMode::push;
  EXPECT_EQ(cluster.seen_decode(1).safe, !push);  // in pull nobody else writes
  cluster.world.connect(0, 1);
  cluster.run();
  EXPECT_TRUE(cluster.seen_decode(1).safe);
  cluster.expect_nothing_open();
  const Request next = cluster.make_request(2, 16, 0, GetParam());
  cluster.open_everywhere(next);
  cluster.finish_everywhere(next);
  cluster.run();
  cluster.expect_committed(next);
}

// The reader finished its reads, then the connection broke: prefill asks when it is back.
TEST(HandoffReconnect, PrefillAsksItsReader) {
  Cluster cluster;
  const Request request = cluster.make_request(1, 16, 0, HandoffMode::pull);
  cluster.open_everywhere(request);
  cluster.run();
  ASSERT_TRUE(cluster.ready(request, 0, {0, 2}, 16).ok());
  cluster.run();
  cluster.world.break_link(0, 1, false);
  cluster.run();
  EXPECT_TRUE(cluster.seen_decode(1).safe);
  EXPECT_FALSE(cluster.seen_prefill(1).safe);
  cluster.world.connect(0, 1);
  cluster.run();
  EXPECT_EQ(cluster.seen_prefill(1).released, 1);
  cluster.expect_nothing_open();
}

// The Engine may show a message before its own peer_up; a room that waits must not mind.
TEST(HandoffGreeting, HelloBeforePeerUp) {
  ClusterOptions options;
  options.greet = false;
  Cluster cluster(options);
  const Request request = cluster.make_request(1, 16);
  cluster.open_everywhere(request);
  cluster.world.connect_half(0, 1);
  cluster.run();
  EXPECT_TRUE(cluster.decode().peers.empty());
  cluster.world.connect(0, 1);
  cluster.run();
  cluster.finish_everywhere(request);
  cluster.run();
  cluster.expect_committed(request);
}

// A later life of a peer releases what the earlier one held, and does not end what waits for it.
TEST(HandoffGreeting, ALaterEpochIsAFence) {
  Cluster cluster;
  const Request old = cluster.make_request(1, 16), waits = cluster.make_request(2, 16);
  bring_to(cluster, old, Stage::accepted);
  cluster.world.break_link(0, 1, false);
  cluster.run();
  EXPECT_FALSE(cluster.seen_decode(1).safe);
  ASSERT_TRUE(cluster.open_decode(waits).ok());
  cluster.run();
  cluster.world.restart(0);
  cluster.world.connect(0, 1);
  cluster.run();
  EXPECT_TRUE(cluster.seen_decode(1).safe);
  EXPECT_EQ(cluster.seen_decode(2).terminals(), 0);
  ASSERT_TRUE(cluster.open_prefill(waits).ok());
  cluster.finish_everywhere(waits);
  cluster.run();
  cluster.expect_committed(waits);
}

// The end of an earlier life is seen late, when the next one is at work already.
TEST_P(HandoffTrouble, ALateFenceOfAnEarlierLifeSaysNothingOfTheNext) {
  for (const std::size_t restarted : {0U, 1U}) {
    SCOPED_TRACE(restarted == 0 ? "prefill restarts" : "decode restarts");
    Cluster cluster;
    const std::size_t at = 1 - restarted;
    const Request old = cluster.make_request(1, 16, 0, GetParam());
    const Request next = cluster.make_request(2, 16, 0, GetParam());
    const std::uint64_t epoch = cluster.world.engine(restarted).epoch();
    bring_to(cluster, old, Stage::accepted);
    cluster.world.break_link(0, 1, false);
    cluster.run();
    cluster.world.restart(restarted);
    cluster.world.connect(0, 1);
    cluster.run();
    bring_to(cluster, next, Stage::moving);
    cluster.world.fence_life(at, restarted, epoch);
    cluster.run();
    EXPECT_EQ(cluster.seen_decode(2).terminals(), 0) << cluster.seen_decode(2).reason;
    EXPECT_EQ(cluster.seen_prefill(2).terminals(), 0) << cluster.seen_prefill(2).reason;
    // Nor does it free what the later life may still touch.
    cluster.world.break_link(0, 1, false);
    cluster.run();
    cluster.world.fence_life(at, restarted, epoch);
    cluster.run();
    const bool push = GetParam() == HandoffMode::push;
    EXPECT_FALSE(push && at == 1 && cluster.seen_decode(2).safe);
    EXPECT_FALSE(!push && at == 0 && cluster.seen_prefill(2).safe);
    cluster.world.fence(0, 1);
    cluster.world.fence(1, 0);
    cluster.world.hold_transfers = false;
    cluster.run();
    cluster.expect_nothing_open();
  }
}

}  // namespace
}  // namespace kvl::test
