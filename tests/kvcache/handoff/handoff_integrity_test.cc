// Bytes that change on the way: found, moved once more by another path, else failed as corrupt; and
// never delivered (the cluster compares every byte at commit).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "kvcache/handoff/integrity.h"
#include "kvcache/handoff/wire.h"
#include "tests/kvcache/handoff/cluster.h"
#include "tests/support/log_guard.h"

namespace kvl::test {
namespace {

using handoff::CrcChoice;
using handoff::CrcMode;

// The value of the first series whose line begins so; -1: none.
double metric(const HandoffEndpoint& endpoint, const std::string& series) {
  PrometheusText text;
  endpoint.visit_metrics(text);
  const std::string all = "\n" + text.text();
  const std::size_t at = all.find("\n" + series + " ");
  return at == std::string::npos ? -1 : std::stod(all.substr(at + series.size() + 2));
}

std::string mismatches(const char* side, std::size_t peer, const char* path) {
  return std::string("kvlane_handoff_crc_mismatches_total{side=\"") + side + "\",peer=\"" +
         std::to_string(FakeWorld::handle(peer).value) + "\",path=\"" + path + "\"}";
}
std::string retries(const char* outcome) {
  return std::string("kvlane_handoff_crc_retries_total{side=\"decode\",outcome=\"") + outcome +
         "\"}";
}

class HandoffIntegrity : public ::testing::TestWithParam<HandoffMode> {
 protected:
  static ClusterOptions checked(bool grouped = false) {
    ClusterOptions options;
    options.config.crc = "all";
    options.config.segment_bytes = 4096;
    if (grouped) options.decode = {2, 1};
    return options;
  }
  ExpectLog corrupt_{"handoff.corrupt"};
};
INSTANTIATE_TEST_SUITE_P(All, HandoffIntegrity,
                         ::testing::Values(HandoffMode::push, HandoffMode::pull),
                         [](const auto& shown) { return std::string(to_string(shown.param)); });

TEST_P(HandoffIntegrity, OneChangedByteIsMovedAgainAndCounted) {
  for (const bool grouped : {false, true}) {
    Cluster cluster(checked(grouped));
    const Request request = cluster.make_request(3, 16, 0, GetParam());
    int landed = 0;
    cluster.world.corrupt = [&](std::size_t, std::byte* at, std::uint64_t bytes) {
      if (++landed == 5) at[bytes / 2] ^= std::byte{0x10};
    };
    cluster.open_everywhere(request);
    cluster.finish_everywhere(request);
    cluster.run();
    cluster.expect_committed(request);
    cluster.expect_nothing_open();
    double found = 0, ok = 0;
    for (std::size_t d = 0; d < cluster.decode_count(); ++d) {
      const HandoffEndpoint& endpoint = *cluster.decode(d).endpoint;
      found += std::max(0.0, metric(endpoint, mismatches("decode", 0, "fake/a")));
      ok += metric(endpoint, retries("ok"));
      EXPECT_EQ(metric(endpoint, retries("failed")), 0);
    }
    EXPECT_EQ(found, 1);
    EXPECT_EQ(ok, 1);
    if (GetParam() == HandoffMode::push && !grouped) {
      EXPECT_EQ(metric(*cluster.prefill().endpoint, mismatches("prefill", 1, "fake/a")), 1);
    }
  }
}

TEST_P(HandoffIntegrity, ABadRailIsAvoidedByEverySecondAttempt) {
  Cluster cluster(checked());
  const Request request = cluster.make_request(3, 32, 0, GetParam());
  cluster.world.corrupt = [&](std::size_t rail, std::byte* at, std::uint64_t) {
    if (rail == 0) at[0] ^= std::byte{1};
  };
  cluster.open_everywhere(request);
  cluster.finish_everywhere(request);
  cluster.run();
  cluster.expect_committed(request);
  cluster.expect_nothing_open();
  const HandoffEndpoint& decode = *cluster.decode().endpoint;
  EXPECT_GE(metric(decode, retries("ok")), 1);
  EXPECT_EQ(metric(decode, retries("ok")), metric(decode, mismatches("decode", 0, "fake/a")));
}

TEST_P(HandoffIntegrity, BytesThatAlwaysChangeFailAsCorrupt) {
  for (const bool grouped : {false, true}) {
    Cluster cluster(checked(grouped));
    const Request request = cluster.make_request(3, 16, 0, GetParam());
    cluster.world.corrupt = [](std::size_t, std::byte* at, std::uint64_t) {
      at[0] ^= std::byte{1};
    };
    cluster.open_everywhere(request);
    cluster.finish_everywhere(request);
    cluster.run();
    cluster.expect_failed(request, Code::corrupt);
    cluster.expect_nothing_open();
    for (std::size_t d = 0; d < cluster.decode_count(); ++d) {
      EXPECT_TRUE(cluster.seen_decode(3, d).layers.empty()) << "a layer was said to be ready";
      EXPECT_TRUE(cluster.seen_decode(3, d).safe);
    }
    if (!grouped) {
      EXPECT_EQ(metric(*cluster.decode().endpoint, retries("failed")), 1);
      EXPECT_EQ(metric(*cluster.decode().endpoint, mismatches("decode", 0, "fake/b")), 1);
    }
  }
}

// Any order of steps, with aborts and lost links between: one end, and no wrong byte.
TEST_P(HandoffIntegrity, RandomChangesInRandomOrder) {
  ExpectLog outbox("handoff.");
  int committed = 0, failed = 0;
  for (std::uint64_t seed = 1; seed <= 150; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options = checked(seed % 2 == 0);
    options.seed = seed;
    if (seed % 3 == 0) options.prefill = {2, 1};
    options.config.segment_bytes = 4096 << (seed % 3);
    Cluster cluster(options);
    auto& random = cluster.world.random;
    const std::uint64_t one_in = 3 + random() % 200;
    cluster.world.corrupt = [&](std::size_t rail, std::byte* at, std::uint64_t) {
      if (random() % (rail == 0 ? one_in : 8 * one_in) == 0) at[0] ^= std::byte{4};
    };
    cluster.world.cancel_is_proven = [&] { return random() % 2 == 0; };
    std::vector<Request> requests;
    for (std::uint64_t room = 1; room <= 3; ++room) {
      requests.push_back(cluster.make_request(room, 8 + random() % 24, 0, GetParam()));
      cluster.open_everywhere(requests.back());
    }
    cluster.run_at_random(static_cast<int>(random() % 60));
    for (const Request& request : requests) {
      for (std::size_t p = 0; p < cluster.prefill_count(); ++p) {
        (void)cluster.ready(request, p, {0, 4}, request.tokens);
        (void)cluster.prefill(p).endpoint->finish(request.room, {});
      }
    }
    cluster.run_at_random(static_cast<int>(random() % 200));
    if (random() % 4 == 0) {
      (void)cluster.decode().endpoint->abort(HandoffSide::decode, 1 + random() % 3);
    }
    if (random() % 6 == 0) {
      cluster.world.break_link(0, cluster.decode_index(), random() % 2 == 0);
      cluster.run_at_random(20);
      cluster.world.connect(0, cluster.decode_index());
    }
    cluster.run_at_random();
    cluster.world.run_ghosts();
    cluster.advance_ms(31'000);
    for (const Request& request : requests) {
      const Seen& seen = cluster.seen_decode(request.room);
      EXPECT_EQ(seen.terminals(), 1) << "room " << request.room;
      seen.committed > 0 ? ++committed : ++failed;
    }
    if (HasFailure()) return;
  }
  EXPECT_GT(committed, 20) << "nothing was repaired";
  EXPECT_GT(failed, 20);
}

TEST(HandoffAgain, AskingForWhatMayNotBeAskedForFailsTheRoom) {
  for (const std::uint32_t seq : {0U, 1000U}) {
    ClusterOptions options;
    options.config.crc = "all";
    ExpectLog corrupt("handoff.corrupt");
    Cluster cluster(options);
    const Request request = cluster.make_request(3, 16), other = cluster.make_request(4, 16);
    std::uint64_t nonce = 0;
    cluster.world.on_message = [&](std::size_t, std::size_t, std::vector<std::byte>& bytes) {
      const auto message = handoff::decode(bytes);
      if (message.ok() && message->room == 3) nonce = message->nonce;
      return true;
    };
    cluster.open_everywhere(request);
    cluster.open_everywhere(other);
    ASSERT_TRUE(cluster.ready(request, 0, {0, 4}, 16).ok());
    cluster.run();
    // Segment 0 exists: it may be asked for once. The second time, or another one, never.
    const handoff::Message again{handoff::Part::prefill, 3, nonce, handoff::Again{seq}};
    cluster.world.inject(1, 0, encode(again));
    cluster.world.inject(1, 0, encode(again));
    cluster.run();
    EXPECT_EQ(cluster.seen_prefill(3).code, Code::corrupt);
    cluster.finish_everywhere(other);
    cluster.run();
    cluster.expect_committed(other);
  }
}

// One changed run is found with probability (1 + (runs - 1) / sample) / runs: the first run of a
// segment is always checked, each other one once in `sample`.
TEST(HandoffSample, FindsAChangedRunAsOftenAsItSays) {
  constexpr std::uint64_t kSeed = 20260101;
  SCOPED_TRACE(kSeed);
  std::mt19937_64 random(kSeed);
  constexpr std::size_t kRuns = 64, kBytes = 32;
  std::vector<std::byte> memory(kRuns * kBytes);
  for (std::byte& byte : memory) byte = static_cast<std::byte>(random());
  const HandoffRegion region{{1}, memory.data(), memory.size()};
  std::vector<PageOp> ops(kRuns);
  for (std::size_t i = 0; i < kRuns; ++i) {
    ops[i].bytes = kBytes;
    ops[i].local_offset = i * kBytes;
  }
  for (const std::uint32_t sample : {4U, 64U}) {
    const CrcChoice choice{CrcMode::sampled, sample};
    constexpr int kRounds = 20000;
    int found = 0;
    for (int round = 0; round < kRounds; ++round) {
      const std::uint64_t room = random();
      const auto seq = static_cast<std::uint32_t>(random() % 100);
      const auto before = checksums(ops, {&region, 1}, choice, room, seq);
      const std::size_t run = random() % kRuns;
      std::byte& byte = memory[run * kBytes + random() % kBytes];
      byte ^= std::byte{0x40};
      const bool seen = checksums(ops, {&region, 1}, choice, room, seq) != before;
      EXPECT_TRUE(seen || run != 0) << "the first run is always checked";
      found += seen ? 1 : 0;
      byte ^= std::byte{0x40};
    }
    const double chance = (1.0 + (kRuns - 1.0) / sample) / kRuns;
    const double sigma = std::sqrt(kRounds * chance * (1 - chance));
    EXPECT_NEAR(found, kRounds * chance, 5 * sigma) << "one in " << sample;
  }
}

TEST(HandoffCrcChoice, WishesAreSettled) {
  const CrcChoice off{}, all{CrcMode::all, 1}, few{CrcMode::sampled, 64}, some{CrcMode::sampled, 8};
  const CrcChoice cheap{CrcMode::automatic, 1}, dear{CrcMode::automatic, 64};
  EXPECT_EQ(agree(off, off), off);
  EXPECT_EQ(agree(off, few), few);
  EXPECT_EQ(agree(few, some), some);
  EXPECT_EQ(agree(all, some), all);
  for (const CrcChoice own : {off, few, all}) {
    EXPECT_EQ(agree(own, cheap), own) << "automatic follows";
    EXPECT_EQ(agree(dear, own), own);
  }
  EXPECT_EQ(agree(cheap, cheap), all);
  EXPECT_EQ(agree(cheap, dear), few);
}

TEST(HandoffCrcChoice, AutomaticFollowsTheMeasuredCost) {
  handoff::CrcCost cost(64, true);
  EXPECT_EQ(cost.every(), 1U) << "with hardware: all, until more is known";
  EXPECT_EQ(handoff::CrcCost(64, false).every(), 64U);
  std::int64_t now_ns = 0;
  // Moves 10 MB in `move_ns`, checks 1 MB in `crc_ns`.
  const auto go = [&](std::int64_t move_ns, std::int64_t crc_ns) {
    cost.began(now_ns);
    cost.checked(crc_ns, 1'000'000);
    now_ns += move_ns;
    cost.ended(now_ns, 10'000'000);
  };
  for (int i = 0; i < 6; ++i) go(1'000'000, 100'000);
  EXPECT_EQ(cost.every(), 1U) << "too little was seen";
  for (int i = 0; i < 6; ++i) go(1'000'000, 100'000);
  EXPECT_EQ(cost.every(), 64U) << "checksums as slow as the network";
  EXPECT_NEAR(cost.cost(), 1.0, 1e-9);
  for (int i = 0; i < 2000; ++i) go(10'000'000, 30'000);
  EXPECT_NEAR(cost.cost(), 0.03, 0.005);
  EXPECT_EQ(cost.every(), 1U) << "the network became slow";
  // Overlapping transfers count their time once.
  handoff::CrcCost overlapped(64, true);
  for (int i = 0; i < 10; ++i) {
    overlapped.began(0);
    overlapped.checked(1'000'000, 1'000'000);
  }
  for (int i = 0; i < 10; ++i) overlapped.ended(100'000'000, 10'000'000);
  EXPECT_NEAR(overlapped.cost(), 1.0, 1e-9);
}

TEST(HandoffCrcChoice, AutomaticMovesAndMemoryTheCpuCannotReadDoesNotAsk) {
  Cluster cluster;  // the default is auto
  const Request request = cluster.make_request(1, 16);
  cluster.open_everywhere(request);
  cluster.finish_everywhere(request);
  cluster.run();
  cluster.expect_committed(request);
  EXPECT_GE(metric(*cluster.decode().endpoint, "kvlane_handoff_crc_every"), 1);
  EXPECT_GT(metric(*cluster.decode().endpoint, "kvlane_handoff_crc_runs_total"), 0);

  FakeWorld world;
  FakeEngine& engine = world.add_engine();
  HandoffRank rank;
  rank.layout =
      *make_layout({2, 2, 8, false, Dtype::bf16}, {}, {.page_tokens = 4, .page_count = 4});
  rank.regions = {{MemoryHandle{1}, nullptr, rank.layout.region_bytes(0)}};
  const auto endpoint = HandoffEndpoint::open(engine, world.clock, rank);
  ASSERT_TRUE(endpoint.ok());
  EXPECT_EQ(metric(**endpoint, "kvlane_handoff_crc_every"), 0);
}

}  // namespace
}  // namespace kvl::test
