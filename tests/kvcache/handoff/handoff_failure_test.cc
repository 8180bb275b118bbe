// Handoffs that end badly: every stage, every cause, both modes; and who may reuse pages when.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "kvcache/handoff/wire.h"
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

TEST_P(HandoffTrouble, AFlippedByteIsNeverDelivered) {
  for (const bool grouped : {false, true}) {
    ClusterOptions options;
    options.config.crc = "all";
    if (grouped) options.decode = {2, 1};
    Cluster cluster(options);
    const Request request = cluster.make_request(3, 16, 0, GetParam());
    cluster.open_everywhere(request);
    int landed = 0;
    const auto check = cluster.world.on_landed;
    cluster.world.on_landed = [&](std::byte* at, std::uint64_t bytes) {
      check(at, bytes);
      if (++landed == 5) at[bytes / 2] ^= std::byte{0x10};
    };
    cluster.finish_everywhere(request);
    cluster.run();
    cluster.expect_failed(request, Code::corrupt);
    cluster.expect_nothing_open();
  }
}

TEST(HandoffGroup, TheLeadCommitsLastAndOnlyIfAllDo) {
  ClusterOptions options;
  options.prefill = {2, 1};
  options.decode = {4, 1};
  Cluster cluster(options);
  const Request request = cluster.make_request(4, 12);
  cluster.open_everywhere(request);
  // The lead hears of no commit: members have committed, the lead has not and prefill knows it.
  const std::size_t lead = cluster.decode_index(0);
  cluster.world.on_message = [&](std::size_t, std::size_t to, auto& bytes) {
    const auto message = handoff::decode(bytes);
    return to != lead || !std::holds_alternative<handoff::Committed>(message->body);
  };
  cluster.finish_everywhere(request);
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(4, 0).terminals(), 0);
  for (std::size_t d = 1; d < 4; ++d) EXPECT_EQ(cluster.seen_decode(4, d).committed, 1);
  EXPECT_EQ(cluster.seen_prefill(4, 0).terminals(), 0);  // it feeds the lead
  EXPECT_EQ(cluster.seen_prefill(4, 1).committed, 1);
  cluster.advance_ms(31'000);
  EXPECT_EQ(cluster.seen_decode(4, 0).code, Code::timed_out);
  EXPECT_EQ(cluster.seen_prefill(4, 0).failed, 1);
  cluster.expect_nothing_open();
}

TEST(HandoffGroup, TheLeadWaitsForEveryMembersWord) {
  ClusterOptions options;
  options.decode = {4, 1};
  Cluster cluster(options);
  const Request request = cluster.make_request(4, 12);
  cluster.open_everywhere(request);
  cluster.world.on_message = [&](std::size_t from, std::size_t, auto& bytes) {
    const auto message = handoff::decode(bytes);
    return from != cluster.decode_index(2) ||
           !std::holds_alternative<handoff::Committed>(message->body);
  };
  cluster.finish_everywhere(request);
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(4, 0).terminals(), 0);
  // The member that was not heard dies: then the lead cannot know, and does not commit.
  cluster.kill(cluster.decode_index(2), true);
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(4, 0).code, Code::peer_lost);
  EXPECT_EQ(cluster.seen_prefill(4).failed, 1);
  cluster.expect_nothing_open();
}

TEST(HandoffGroup, OneRankThatFailsFailsAll) {
  for (std::size_t culprit = 0; culprit < 4; ++culprit) {
    ClusterOptions options;
    options.prefill = {2, 1};
    options.decode = {4, 1};
    Cluster cluster(options);
    const Request request = cluster.make_request(4, 12);
    cluster.open_everywhere(request);
    cluster.run();
    ASSERT_TRUE(
        cluster.decode(culprit).endpoint->abort(HandoffSide::decode, 4, Code::exhausted).ok());
    (void)cluster.run();
    cluster.expect_failed(request, Code::exhausted);
    cluster.expect_nothing_open();
  }
}

TEST(HandoffGroup, AMemberThatComesAfterTheFailureHearsOfIt) {
  ClusterOptions options;
  options.decode = {2, 1};
  Cluster cluster(options);
  const Request request = cluster.make_request(4, 12);
  ASSERT_TRUE(cluster.open_prefill(request).ok());
  ASSERT_TRUE(cluster.open_decode(request, 0).ok());
  ASSERT_TRUE(cluster.decode(0).endpoint->abort(HandoffSide::decode, 4, Code::exhausted).ok());
  cluster.run();
  ASSERT_TRUE(cluster.open_decode(request, 1).ok());
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(4, 1).failed, 1);
  cluster.expect_nothing_open();
}

TEST(HandoffRefusals, OfCallsThatMakeNoSense) {
  Cluster cluster;
  const Request request = cluster.make_request(1, 16);
  HandoffEndpoint& prefill = *cluster.prefill().endpoint;
  HandoffEndpoint& decode = *cluster.decode().endpoint;
  const auto refused = [](const Status& status) { return status.code() == Code::invalid_argument; };

  EXPECT_TRUE(refused(prefill.open_prefill({1, 0, 0})));
  EXPECT_TRUE(refused(decode.open_prefill({1, 16, 0})));
  ASSERT_TRUE(prefill.open_prefill({1, 16, 0}).ok());
  EXPECT_TRUE(refused(prefill.open_prefill({1, 16, 0})));  // duplicate
  const std::uint32_t outside[] = {96};
  EXPECT_TRUE(refused(prefill.add_pages(1, 0, outside)));
  EXPECT_TRUE(refused(prefill.add_pages(1, 1, {})));
  EXPECT_TRUE(refused(prefill.ready(1, {0, 4}, 17)));
  EXPECT_TRUE(refused(prefill.abort(HandoffSide::prefill, 1, Code::ok)));
  EXPECT_EQ(prefill.ready(2, {0, 4}, 1).code(), Code::not_found);
  EXPECT_EQ(prefill.abort(HandoffSide::prefill, 2).code(), Code::not_found);

  const DecodeOpen good = cluster.decode_open(request, 0);
  const auto with = [&](auto change) {
    DecodeOpen open = good;
    change(open);
    return decode.open_decode(std::move(open));
  };
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.sources.clear(); })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.sources.push_back(o.sources[0]); })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.pages.clear(); })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.pages[0].ids.pop_back(); })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.pages[0].ids[1] = 96; })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.pages[0].first_token = 4; })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.skip_tokens = 16; })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.group_size = 0; })));
  ASSERT_TRUE(with([](DecodeOpen&) {}).ok());
  EXPECT_TRUE(refused(with([](DecodeOpen&) {})));  // duplicate
  std::vector<std::byte> long_metadata(kHandoffMetadataBytesMax + 1);
  ASSERT_TRUE(prefill.add_pages(1, 0, request.prefill_pages[0]).ok());
  ASSERT_TRUE(prefill.ready(1, {0, 4}, 16).ok());
  EXPECT_TRUE(refused(prefill.finish(1, long_metadata)));
  long_metadata.pop_back();
  ASSERT_TRUE(prefill.finish(1, long_metadata).ok());
  EXPECT_TRUE(refused(prefill.finish(1, {})));
  cluster.run();
  cluster.expect_committed(request);
  EXPECT_EQ(cluster.seen_decode(1).metadata.at(0), long_metadata);
}

TEST(HandoffRefusals, DisagreementFailsThatRequestOnBothSidesAndNoOther) {
  Cluster cluster;
  const Request good = cluster.make_request(1, 16), tokens = cluster.make_request(2, 16),
                twice = cluster.make_request(3, 16);
  cluster.open_everywhere(good);
  ASSERT_TRUE(cluster.prefill().endpoint->open_prefill({2, 15, 0}).ok());
  ASSERT_TRUE(cluster.open_decode(tokens).ok());
  ASSERT_TRUE(cluster.open_prefill(twice).ok());
  DecodeOpen same_page = cluster.decode_open(twice, 0);
  same_page.pages[0].ids[1] = same_page.pages[0].ids[0];
  ASSERT_TRUE(cluster.decode().endpoint->open_decode(same_page).ok());
  cluster.run();
  cluster.expect_failed(tokens, Code::invalid_argument);
  ASSERT_TRUE(cluster.ready(twice, 0, {0, 4}, 16).ok());
  cluster.run();
  cluster.expect_failed(twice, Code::invalid_argument);
  cluster.finish_everywhere(good);
  cluster.run();
  cluster.expect_committed(good);
  cluster.expect_nothing_open();
}

TEST(HandoffRefusals, SourcesThatDoNotCoverTheLayout) {
  ClusterOptions options;
  options.prefill = {2, 1};
  Cluster cluster(options);
  const Request request = cluster.make_request(1, 16);
  DecodeOpen open = cluster.decode_open(request, 0);
  open.sources.pop_back();
  ASSERT_TRUE(cluster.decode().endpoint->open_decode(open).ok());
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(1).code, Code::invalid_argument);
  EXPECT_TRUE(cluster.seen_decode(1).safe);
}

TEST(HandoffEarly, KeptWithinBoundsInCountAndTime) {
  ClusterOptions options;
  options.config.early_max = 3;
  options.config.early_ms = 100;
  Cluster cluster(options);
  std::vector<Request> requests;
  for (std::uint64_t room = 1; room <= 5; ++room) {
    requests.push_back(cluster.make_request(room, 8));
    ASSERT_TRUE(cluster.open_decode(requests.back()).ok());
  }
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(4).code, Code::exhausted);
  EXPECT_EQ(cluster.seen_decode(5).code, Code::exhausted);
  EXPECT_TRUE(cluster.seen_decode(5).safe);
  cluster.advance_ms(101);
  for (std::uint64_t room = 1; room <= 3; ++room) {
    EXPECT_EQ(cluster.seen_decode(room).code, Code::not_found);
    EXPECT_TRUE(cluster.seen_decode(room).safe);
  }
  cluster.expect_nothing_open();
}

TEST(HandoffEarly, AClientThatLeftBeforePrefillCame) {
  Cluster cluster;
  const Request request = cluster.make_request(1, 8);
  ASSERT_TRUE(cluster.open_decode(request).ok());
  cluster.run();
  ASSERT_TRUE(cluster.decode().endpoint->abort(HandoffSide::decode, 1).ok());
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(1).released, 1);
  ASSERT_TRUE(cluster.prefill().endpoint->open_prefill({1, 8, 0}).ok());
  cluster.run();
  EXPECT_EQ(cluster.seen_prefill(1).code, Code::aborted);
  cluster.expect_nothing_open();
}

// Peers of different versions refuse each other once, and do not argue.
TEST(HandoffHostile, AnotherVersionIsRefusedQuietly) {
  ClusterOptions options;
  options.greet = false;
  Cluster cluster(options);
  cluster.world.on_message = [](std::size_t, std::size_t, std::vector<std::byte>& m) {
    m[4] = std::byte{2};
    return true;
  };
  const Request request = cluster.make_request(1, 8);
  ASSERT_TRUE(cluster.open_decode(request).ok());
  cluster.greet_all();
  for (const Cluster::Node* node : {&cluster.prefill(), &cluster.decode()}) {
    ASSERT_EQ(node->peers.size(), 1U);
    EXPECT_EQ(node->peers[0].kind, HandoffEvent::Kind::peer_refused);
    EXPECT_EQ(node->peers[0].code, Code::unsupported);
  }
  EXPECT_EQ(cluster.seen_decode(1).code, Code::unsupported);
  EXPECT_TRUE(cluster.seen_decode(1).safe);
}

// Messages that no correct peer sends: the room they name may fail, nothing else is harmed.
TEST(HandoffHostile, MutatedTrafficHarmsNobodyElse) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options;
    options.seed = seed;
    options.decode = {2, 1};
    options.config.crc = seed % 2 == 0 ? "all" : "off";
    Cluster cluster(options);
    auto& random = cluster.world.random;
    const HandoffMode mode = seed % 3 == 0 ? HandoffMode::pull : HandoffMode::push;
    const Request victim = cluster.make_request(1, 16, 0, mode);
    const Request other = cluster.make_request(2, 16, 0, mode);
    // Each message of room 1 is sometimes repeated with changed bytes behind the header's room.
    cluster.world.on_message = [&](std::size_t from, std::size_t to, std::vector<std::byte>& m) {
      const auto message = handoff::decode(m);
      if (!message.ok() || message->room != 1 || random() % 3 != 0) return true;
      std::vector<std::byte> bad = m;
      for (std::uint64_t i = 0; i <= random() % 3; ++i) {
        const std::size_t at =
            random() % 2 == 0 || bad.size() <= handoff::kHeaderBytes
                ? 4 + random() % 4
                : handoff::kHeaderBytes + random() % (bad.size() - handoff::kHeaderBytes);
        bad[at] = static_cast<std::byte>(random());
      }
      if (random() % 2 == 0) {
        m = std::move(bad);
      } else {
        cluster.world.inject(from, to, std::move(bad));
      }
      return true;
    };
    cluster.open_everywhere(victim);
    cluster.open_everywhere(other);
    cluster.run_at_random(2000);
    for (std::size_t p = 0; p < cluster.prefill_count(); ++p) {
      (void)cluster.ready(victim, p, {0, 4}, 16);
      (void)cluster.prefill(p).endpoint->finish(1, {});
    }
    cluster.finish_everywhere(other);
    cluster.run_at_random();
    cluster.world.on_message = nullptr;
    cluster.advance_ms(31'000);
    cluster.expect_committed(other);
    for (std::size_t d = 0; d < 2; ++d) EXPECT_EQ(cluster.seen_decode(1, d).terminals(), 1);
    EXPECT_EQ(cluster.seen_prefill(1).terminals(), 1);
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace kvl::test
