// The UCX Link over a UCX in memory: what no stock one does on demand.
#include <gtest/gtest.h>

#include <memory>

#include "kvl/engine.h"
#include "tests/support/log_guard.h"
#include "tests/transport/ucx/fake_ucx.h"
#include "tests/transport/ucx/ucx_pair.h"
#include "transport/ucx/ucx_transport.h"
#include "transport/ucx/ucx_wire.h"

namespace kvl {
std::unique_ptr<Transport> make_ucx_transport(const Settings&);

namespace ucx {
namespace {

using test::ExpectLog;
using test::FakeUcx;

class UcxLinkTest : public ::testing::Test {
 protected:
  void open(const std::string& name = "rc", std::int64_t op_bytes = 4096) {
    UcxConfig config;
    config.transports = name;
    config.op_bytes = op_bytes;
    config.rx_depth = 1024;
    transport = make_transport(config, fake.api());
    ASSERT_EQ(transport->devices().size(), 1U) << transport->why_unusable();
    pair = std::make_unique<test::UcxPair>(*transport, clock);
    fake.order.clear();
  }
  void open_up(const std::string& name = "rc") {
    open(name);
    ASSERT_TRUE(pair->up());
    fake.order.clear();
    fake.tries = fake.rma_posts = 0;
  }

  FakeUcx fake;  // outlives the Links
  test::TestClock clock;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<test::UcxPair> pair;
};

TEST_F(UcxLinkTest, PutsThenFlushThenNote) {
  open_up();
  const std::array<std::byte, 2> note{std::byte{4}, std::byte{2}};
  fake.hold_flushes = true;
  const Ticket ticket = pair->post(100, note);
  EXPECT_TRUE(pair->run([&] { return fake.order.size() == 101; }));
  for (int i = 0; i < 20; ++i) {
    pair->a.poll();
    pair->b.poll();
  }
  EXPECT_EQ(fake.order.back(), "flush") << "a note before its bytes";
  EXPECT_EQ(pair->a.find(Event::Kind::batch, ticket), nullptr);
  fake.hold_flushes = false;
  EXPECT_EQ(pair->end_of(ticket), Code::ok);
  ASSERT_TRUE(pair->run([&] { return pair->b.find(Event::Kind::note) != nullptr; }));
  EXPECT_EQ(pair->b.find(Event::Kind::note)->note_bytes, 2);
  EXPECT_EQ(pair->a.find(Event::Kind::batch, ticket)->bytes_done, 100U * 1024);
  EXPECT_TRUE(pair->pages_are_there(100));
}

TEST_F(UcxLinkTest, NeighboursAreOneOperation) {
  open_up();
  EXPECT_EQ(pair->end_of(pair->post({0, 0, 0, 0, 512, 8, 512, 512})), Code::ok);
  EXPECT_EQ(fake.rma_posts, 1U);
}

TEST_F(UcxLinkTest, ReadsNeedNoFlush) {
  open_up();
  pair->b.memory[2048] = std::byte{99};
  EXPECT_EQ(pair->end_of(pair->post(4, {}, Direction::read)), Code::ok);
  EXPECT_EQ(pair->a.memory[2048], std::byte{99});
  EXPECT_EQ(fake.order, (std::vector<std::string>(4, "get")));
}

// UCX is full for a while, at every place of a batch: nothing is lost, nothing is posted twice.
TEST_F(UcxLinkTest, FullUcxIsAskedAgain) {
  for (std::uint64_t first = 0; first < 20; ++first) {
    open_up();
    for (std::uint64_t i = 0; i < 6; ++i) fake.again_at.push_back(first + i);
    EXPECT_EQ(pair->end_of(pair->post(20)), Code::ok);
    EXPECT_EQ(fake.rma_posts, 20U);
    EXPECT_GE(pair->a.metric("kvlane_ucx_again_total"), 1.0);
    pair.reset();
    fake.again_at.clear();
  }
}

TEST_F(UcxLinkTest, RefusedPutFailsItsBatchAlone) {
  open_up();
  fake.fail_next = UCS_ERR_REJECTED;
  EXPECT_EQ(pair->end_of(pair->post(4)), Code::permission);
  EXPECT_EQ(pair->a.metric("kvlane_ucx_faults_total refused"), 1.0);
  EXPECT_EQ(pair->end_of(pair->post(4)), Code::ok);
}

TEST_F(UcxLinkTest, CancelledBatchIsFlushed) {
  open_up();
  fake.hold_flushes = true;
  const Ticket ticket = pair->post(200);
  pair->a.poll();  // some of it is posted
  ASSERT_TRUE(pair->a.link->cancel(ticket).ok());
  for (int i = 0; i < 20; ++i) pair->a.poll();
  EXPECT_EQ(pair->a.find(Event::Kind::batch, ticket), nullptr) << "its puts may still arrive";
  EXPECT_LT(fake.rma_posts, 200U);
  fake.hold_flushes = false;
  EXPECT_EQ(pair->end_of(ticket), Code::aborted);
}

TEST_F(UcxLinkTest, LostPeerKeepsItsMemoryUntilTheEndpointIsClosed) {
  const std::pair<ucs_status_t, const char*> cases[] = {
      {UCS_ERR_CONNECTION_RESET, "connection_lost"},
      {UCS_ERR_ENDPOINT_TIMEOUT, "unresponsive"},
      {UCS_ERR_UNREACHABLE, "unreachable"},
      {UCS_ERR_SHMEM_SEGMENT, "other"}};
  for (const auto& [status, cause] : cases) {
    const ExpectLog expected("ucx.peer_lost");
    open_up();
    fake.hold_puts = fake.hold_closes = true;
    const Ticket ticket = pair->post(4);
    pair->a.poll();
    fake.lose_peers(status);
    for (int i = 0; i < 20; ++i) pair->a.poll();
    EXPECT_EQ(pair->a.find(Event::Kind::batch, ticket), nullptr);
    fake.hold_puts = fake.hold_closes = false;
    EXPECT_NE(pair->end_of(ticket), Code::ok);
    ASSERT_TRUE(pair->run([&] { return pair->a.find(Event::Kind::peer_down) != nullptr; }));
    EXPECT_EQ(pair->a.find(Event::Kind::peer_down)->code, Code::peer_lost);
    EXPECT_GE(pair->a.metric(std::string("kvlane_ucx_faults_total ") + cause), 1.0);
    pair.reset();
  }
}

TEST_F(UcxLinkTest, CloseWaitsForWhatIsUnderWay) {
  open_up();
  fake.hold_flushes = true;
  const Ticket ticket = pair->post(4);
  pair->a.poll();
  pair->a.link->close_peer(pair->a.peer);
  for (int i = 0; i < 20; ++i) pair->a.poll();
  EXPECT_EQ(pair->a.find(Event::Kind::peer_down), nullptr);
  fake.hold_flushes = false;
  EXPECT_EQ(pair->end_of(ticket), Code::ok) << "it was all posted, and has arrived";
  ASSERT_TRUE(pair->run([&] { return pair->a.find(Event::Kind::peer_down) != nullptr; }));
  EXPECT_EQ(pair->a.find(Event::Kind::peer_down)->code, Code::aborted);
  EXPECT_EQ(pair->a.metric("kvlane_ucx_forced_closes_total"), 0.0);
}

TEST_F(UcxLinkTest, CloseIsForcedInTheEnd) {
  open_up();
  fake.hold_puts = true;
  const Ticket ticket = pair->post(4);
  pair->a.poll();
  pair->a.link->close_peer(pair->a.peer);
  pair->a.poll();
  clock.now += 2'000'000'000;
  EXPECT_EQ(pair->end_of(ticket), Code::aborted);
  ASSERT_TRUE(pair->run([&] { return pair->a.find(Event::Kind::peer_down) != nullptr; }));
  EXPECT_EQ(pair->a.metric("kvlane_ucx_forced_closes_total"), 1.0);
}

// A peer of which nothing is heard, and to which nothing goes out any more.
TEST_F(UcxLinkTest, SilentPeerIsProbedAndLost) {
  const ExpectLog expected("ucx.peer_lost");
  open_up();
  fake.hold_flushes = true;
  for (int i = 0; i < 10; ++i) {
    clock.now += 400'000'000;
    pair->a.poll();
  }
  ASSERT_TRUE(pair->run([&] { return pair->a.find(Event::Kind::peer_down) != nullptr; }));
  EXPECT_EQ(pair->a.metric("kvlane_ucx_faults_total unresponsive"), 1.0);
}

TEST_F(UcxLinkTest, StrangersAreCountedAndDropped) {
  open_up();
  const std::size_t events = pair->b.events.size();
  fake.inject(1, {});
  fake.inject(1, std::vector<std::byte>(72, std::byte{0x5A}));
  PeerMessage forged;
  forged.type = MessageType::note;
  forged.note_bytes = 1;
  forged.to_peer = pair->b.peer.value;  // guessed; the secret is not
  const auto bytes = std::as_bytes(std::span(&forged, 1));
  fake.inject(1, {bytes.begin(), bytes.end()});
  EXPECT_EQ(pair->end_of(pair->post(4)), Code::ok);
  EXPECT_EQ(pair->b.metric("kvlane_ucx_strangers_total malformed"), 2.0);
  EXPECT_EQ(pair->b.metric("kvlane_ucx_strangers_total unknown_token"), 1.0);
  EXPECT_EQ(pair->b.events.size(), events);
}

TEST_F(UcxLinkTest, FloodOfMessagesLosesItsPeer) {
  const ExpectLog expected("ucx.peer_lost");
  open_up();
  PeerMessage note;
  note.type = MessageType::note;
  note.note_bytes = 1;
  const PeerToken token = decode_offer(pair->b.offered, 1 << 20).value().token;
  note.to_peer = token.peer;
  note.to_secret = token.secret;
  const auto bytes = std::as_bytes(std::span(&note, 1));
  for (int i = 0; i < 3000; ++i) fake.inject(1, {bytes.begin(), bytes.end()});
  ASSERT_TRUE(pair->run([&] { return pair->b.find(Event::Kind::peer_down) != nullptr; }));
  EXPECT_EQ(pair->b.metric("kvlane_ucx_faults_total flooded"), 1.0);
}

TEST_F(UcxLinkTest, AnotherTransportThanAskedForIsRefused) {
  const ExpectLog expected("ucx.peer_lost");
  open("rc+tcp");
  fake.lane = "tcp/eth0";
  fake.uses = "am wireup";
  ASSERT_TRUE(pair->run([&] { return pair->a.find(Event::Kind::peer_down) != nullptr; }));
  EXPECT_EQ(pair->a.find(Event::Kind::peer_up), nullptr);
  EXPECT_EQ(pair->a.find(Event::Kind::peer_down)->code, Code::unsupported);
  EXPECT_EQ(pair->a.metric("kvlane_ucx_faults_total wrong_transport"), 1.0);
}

TEST_F(UcxLinkTest, WhatWasChosenIsCounted) {
  open_up();
  EXPECT_EQ(pair->a.metric("kvlane_ucx_peers_up_total no rc_verbs/mlx5_0:1"), 1.0);
}

// Which devices there are.
class UcxDevices : public ::testing::Test {
 protected:
  std::string why(const std::string& names) {
    UcxConfig config;
    config.transports = names;
    const auto transport = make_transport(config, fake.api());
    EXPECT_TRUE(transport->devices().empty());
    return transport->why_unusable();
  }
  FakeUcx fake;
};

TEST_F(UcxDevices, AnotherTransportIsNoDevice) {
  fake.lane = "tcp/eth0";
  fake.uses = "am wireup";
  EXPECT_NE(why("rc+tcp").find("tcp/eth0"), std::string::npos);
}

TEST_F(UcxDevices, WithoutPeerFailureIsNoDevice) {
  fake.connect_status = UCS_ERR_UNREACHABLE;
  EXPECT_NE(why("posix").find("peer is lost"), std::string::npos);
}

TEST_F(UcxDevices, UcxMustBeAskedFor) {
  EXPECT_NE(why("").find("ucx.transports"), std::string::npos);
  const auto transport = make_ucx_transport(Settings{});
  EXPECT_TRUE(transport->devices().empty());
}

TEST_F(UcxDevices, FencesAreWhatTheTargetChecks) {
  UcxConfig config;
  config.transports = "rc";
  EXPECT_EQ(make_transport(config, fake.api())->devices().front().fence, Fence::none);
  fake.lane = "tcp/eth0";
  fake.uses = "am wireup";
  config.transports = "tcp";
  EXPECT_EQ(make_transport(config, fake.api())->devices().front().fence, Fence::immediate);
}

TEST(UcxLibrary, IsMissedAloud) {
  Settings::Source source;
  source.environment = false;
  source.flags = {{"ucx.library", "/nowhere/libucp.so.0"}, {"require", "ucx:tcp"}};
  std::vector<Setting> rows = transport_settings();
  for (Setting& row : engine_settings()) rows.push_back(row);
  const auto settings = Settings::load(rows, source);
  ASSERT_TRUE(settings.ok());
  const auto transport = make_ucx_transport(*settings);
  EXPECT_TRUE(transport->devices().empty());
  EXPECT_NE(transport->why_unusable().find("/nowhere/libucp.so.0"), std::string::npos);
}

TEST(UcxLibrary, AnotherLibraryIsTooOld) {
  std::string why;
  EXPECT_FALSE(load_ucx_api("libm.so.6", &why).ok());
  EXPECT_NE(why.find("1.13"), std::string::npos);
}

}  // namespace
}  // namespace ucx
}  // namespace kvl
