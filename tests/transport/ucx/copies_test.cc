// Runs as messages: what a hostile peer may say, and the stock library over tcp.
#include <gtest/gtest.h>

#include <memory>

#include "tests/support/log_guard.h"
#include "tests/transport/ucx/fake_ucx.h"
#include "tests/transport/ucx/ucx_pair.h"
#include "transport/ucx/ucx_lanes.h"
#include "transport/ucx/ucx_transport.h"
#include "transport/ucx/ucx_wire.h"

namespace kvl::ucx {
namespace {

using test::ExpectLog;
using test::FakeUcx;

class CopiesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fake.lane = "tcp/eth0";
    fake.uses = "am wireup";
    UcxConfig config;
    config.transports = "tcp";
    transport = make_transport(config, fake.api());
    ASSERT_EQ(transport->devices().size(), 1U) << transport->why_unusable();
    pair = std::make_unique<test::UcxPair>(*transport, clock);
    ASSERT_TRUE(pair->up());
    token = decode_offer(pair->b.offered, 1 << 20).value().token;
  }
  void say(RunHeader run, std::size_t data_bytes = 0) {
    run.to_peer = token.peer;
    run.to_secret = token.secret;
    const auto bytes = std::as_bytes(std::span(&run, 1));
    fake.inject(2, {bytes.begin(), bytes.end()}, std::vector<std::byte>(data_bytes, std::byte{7}));
  }

  const ExpectLog emulated{"ucx."};
  FakeUcx fake;  // outlives the Links
  test::TestClock clock;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<test::UcxPair> pair;
  PeerToken token;  // b's for a
};

TEST_F(CopiesTest, NoPutAndNoGetOfUcx) {
  const std::array<std::byte, 1> note{std::byte{1}};
  EXPECT_EQ(pair->end_of(pair->post(100, note)), Code::ok);
  EXPECT_TRUE(pair->pages_are_there(100));
  EXPECT_EQ(pair->end_of(pair->post({0, 0, 0, 0, 500'000, 1, 0, 0}, {}, Direction::read)),
            Code::ok);
  EXPECT_EQ(fake.rma_posts, 0U);
}

// The target checks what the initiator would never have posted.
TEST_F(CopiesTest, HostileWritesChangeNothing) {
  const std::vector<std::byte> before = pair->b.memory, readable = pair->b.readable;
  const Blob exported = pair->b.link->export_memory(pair->b.readable_id, pair->b.peer).value();
  RunHeader run;
  run.type = RunType::write;
  run.bytes = 64;
  const std::uint64_t memory = pair->b.id.value;
  const std::pair<std::uint64_t, std::uint64_t> bad[] = {
      {memory, before.size() - 63},
      {memory, before.size()},
      {memory, UINT64_MAX - 10},
      {memory + (1ULL << 32), 0},
      {0, 0},
      {pair->b.readable_id.value, 0},
      {pair->a.readable_id.value + 1, 0},
  };
  for (const auto& [id, offset] : bad) {
    run.memory = id;
    run.offset = offset;
    say(run, 64);
  }
  run.memory = memory;
  run.offset = 0;
  say(run, 63);  // not so much as it says
  EXPECT_TRUE(pair->run([&] {
    return pair->b.metric("kvlane_ucx_refused_runs_total") == static_cast<double>(std::size(bad));
  }));
  EXPECT_EQ(pair->b.metric("kvlane_ucx_strangers_total malformed"), 1.0);
  EXPECT_EQ(pair->b.memory, before);
  EXPECT_EQ(pair->b.readable, readable);
  EXPECT_EQ(pair->end_of(pair->post(4)), Code::ok);
}

TEST_F(CopiesTest, HostileAnswersAreDropped) {
  const PeerToken ours = decode_offer(pair->a.offered, 1 << 20).value().token;
  for (const RunType type : {RunType::fetched, RunType::fenced}) {
    for (std::uint64_t cookie : {0ULL, 1ULL, 0xFFFFULL, ~0ULL, 1ULL << 16}) {
      RunHeader run;
      run.type = type;
      run.cookie = cookie;
      run.to_peer = ours.peer;
      run.to_secret = ours.secret;
      run.bytes = type == RunType::fetched ? 8 : 0;
      const auto bytes = std::as_bytes(std::span(&run, 1));
      fake.inject(2, {bytes.begin(), bytes.end()}, std::vector<std::byte>(run.bytes));
    }
  }
  EXPECT_EQ(pair->end_of(pair->post(4)), Code::ok);
  EXPECT_EQ(pair->a.metric("kvlane_ucx_strangers_total malformed"), 10.0);
}

TEST_F(CopiesTest, TooManyQuestionsLoseTheirPeer) {
  RunHeader run;
  run.type = RunType::fence;
  run.offset = UINT64_MAX;  // writes that never come
  run.bytes = 5;
  for (int i = 0; i < 100; ++i) say(run);
  ASSERT_TRUE(pair->run([&] { return pair->b.find(Event::Kind::peer_down) != nullptr; }));
  EXPECT_EQ(pair->b.metric("kvlane_ucx_faults_total flooded"), 1.0);
}

// Removed while the peer does not know it yet: refused there, and only that batch.
TEST_F(CopiesTest, RemovedMemoryIsRefused) {
  ASSERT_TRUE(pair->b.link->remove_memory(pair->b.id).ok());
  const std::vector<std::byte> before = pair->b.memory;
  const Ticket write = pair->post(4);
  const Code code = pair->end_of(write);
  EXPECT_TRUE(code == Code::permission || code == Code::invalid_argument) << to_string(code);
  EXPECT_EQ(pair->b.memory, before);
}

TEST(Lanes, AreReadFromWhatUcxPrints) {
  const Lanes rc = parse_lanes(
      "#   lane[0]:  4:rc_mlx5/mlx5_0:1.0 md[4]  -> md[4]/ib/sysdev[255] rma_bw#0 rma am am_bw#0\n"
      "#   lane[1]:  5:rc_mlx5/mlx5_1:1.0 md[5]  -> md[5]/ib/sysdev[255] rma_bw#1 wireup\n");
  EXPECT_EQ(rc.pages, "rc_mlx5/mlx5_0:1,rc_mlx5/mlx5_1:1");
  EXPECT_FALSE(rc.emulated);
  EXPECT_TRUE(meets("rc", rc));
  EXPECT_TRUE(meets("rc_mlx5", rc));
  EXPECT_TRUE(meets("rc_x", rc));
  EXPECT_TRUE(meets("ib", rc));
  EXPECT_TRUE(meets("all", rc));
  EXPECT_FALSE(meets("rc_verbs", rc));
  EXPECT_FALSE(meets("tcp", rc));
  const Lanes tcp = parse_lanes(
      "#  peer: x\n#   lane[0]:  0:tcp/lo.0 md[0]   -> md[0]/tcp/sysdev[255] am am_bw#0 wireup\n");
  EXPECT_EQ(tcp.pages, "tcp/lo");
  EXPECT_TRUE(tcp.emulated);
  EXPECT_TRUE(meets("tcp", tcp));
  for (const char* nonsense : {"", "lane[", "lane[0]:", "lane[0]: x", "lane[0]: : am", "\n\n"}) {
    EXPECT_FALSE(meets("tcp", parse_lanes(nonsense))) << nonsense;
  }
}

// The library of this machine.
class StockUcx : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<UcxApi> found = load_ucx_api("", &why);
    if (!found.ok()) GTEST_SKIP() << why;
    api = *found;
  }
  std::string why;
  UcxApi api;
};

TEST_F(StockUcx, TcpMovesPages) {
  const ExpectLog emulated("ucx.");
  UcxConfig config;
  config.transports = "tcp";
  const auto transport = make_transport(config, api);
  ASSERT_EQ(transport->devices().size(), 1U) << transport->why_unusable();
  const SteadyClock clock;
  test::UcxPair pair(*transport, clock);
  const std::int64_t until_ns = clock.now_ns() + 10'000'000'000;
  while (!pair.up() && clock.now_ns() < until_ns) {
  }
  const std::array<std::byte, 3> note{};
  const Ticket ticket = pair.post(100, note);
  while (pair.b.find(Event::Kind::note) == nullptr && clock.now_ns() < until_ns) {
    pair.a.poll();
    pair.b.poll();
  }
  EXPECT_EQ(pair.end_of(ticket), Code::ok);
  EXPECT_TRUE(pair.pages_are_there(100));

  test::UcxMetrics metrics;
  pair.a.link->visit_metrics(metrics, {});
  std::size_t chosen = 0;
  for (const auto& [name, value] : metrics.values) {
    chosen += name.starts_with("kvlane_ucx_peers_up_total yes tcp/");
  }
  EXPECT_EQ(chosen, 1U);
}

TEST_F(StockUcx, SharedMemoryIsTurnedDown) {
  UcxConfig config;
  config.transports = "posix,nonsense";
  const auto transport = make_transport(config, api);
  EXPECT_TRUE(transport->devices().empty());
  EXPECT_NE(transport->why_unusable().find("posix: "), std::string::npos);
  EXPECT_NE(transport->why_unusable().find("nonsense: "), std::string::npos);
}

}  // namespace
}  // namespace kvl::ucx
