// The libfabric Link over a provider in memory: what no stock provider does on demand.
#include <gtest/gtest.h>

#include <functional>
#include <memory>

#include "kvl/transport.h"
#include "tests/support/log_guard.h"
#include "tests/transport/libfabric/fabric_fixture.h"
#include "transport/libfabric/fabric_device.h"
#include "transport/libfabric/fabric_wire.h"

namespace kvl {
std::unique_ptr<Transport> make_libfabric_transport(const Settings&);

namespace libfabric {
namespace {

using test::ExpectLog;
using test::FakeOptions;
using test::FakeProvider;

class FabricLinkTest : public test::FabricFixture {};

TEST_F(FabricLinkTest, RunsAreRungAndBytesArrive) {
  open("fake");
  const std::array<std::byte, 2> note{std::byte{4}, std::byte{2}};
  EXPECT_EQ(end_of(post(100, note)), Code::ok);
  EXPECT_TRUE(run([&] { return b->find(Event::Kind::note) != nullptr; }));
  EXPECT_EQ(b->find(Event::Kind::note)->note_bytes, 2);
  for (std::size_t i = 0; i < 100; ++i) {
    ASSERT_TRUE(
        std::equal(&a->memory[i * 2048], &a->memory[i * 2048] + 1024, &b->memory[i * 2048]));
  }
  EXPECT_EQ(fake->rma_posts, 100U);
  EXPECT_GT(fake->run_longest, 1U);
  EXPECT_LE(fake->run_longest, 16U);
  EXPECT_EQ(fake->waiting(), 0U);
}

TEST_F(FabricLinkTest, NeighboursAreOneOperation) {
  open("fake");
  op = {};
  std::vector<PageOp> ops;
  for (std::uint64_t i = 0; i < 8; ++i) ops.push_back({0, 0, i * 512, i * 512, 512, 1, 0, 0});
  Batch batch;
  batch.ticket = {++tickets};
  batch.peer = a->peer;
  batch.ops = ops;
  batch.locals = std::span(&a->id, 1);
  batch.remotes = std::span(&a->remote, 1);
  ASSERT_TRUE(a->link->post(batch).ok());
  EXPECT_EQ(end_of(batch.ticket), Code::ok);
  EXPECT_EQ(fake->rma_posts, 1U);
}

// The provider is full for a while, at every place of a run: nothing is lost, nothing is posted
// twice, and no doorbell stays unrung.
TEST_F(FabricLinkTest, FullProviderIsAskedAgain) {
  for (std::uint64_t first = 0; first < 20; ++first) {
    open("fake");
    const std::uint64_t before = fake->rma_posts;
    for (std::uint64_t i = 0; i < 6; ++i) fake->again_at.push_back(first + i);
    EXPECT_EQ(end_of(post(20)), Code::ok);
    EXPECT_EQ(fake->rma_posts - before, 20U);
    EXPECT_EQ(fake->waiting(), 0U);
    EXPECT_GE(a->metric("kvlane_libfabric_again_total"), 1.0);
  }
}

TEST_F(FabricLinkTest, DoorbellIsRungWhenNothingFollows) {
  open("fake");
  // From the sixth on nothing is taken any more, and then the batch is cancelled: five operations
  // wait for a doorbell that only something else can ring.
  for (std::uint64_t i = 5; i < 2000; ++i) fake->again_at.push_back(i);
  const Ticket ticket = post(20);
  a->poll();
  EXPECT_EQ(fake->waiting(), 0U) << "a run was left without its doorbell";
  EXPECT_GE(a->metric("kvlane_libfabric_doorbells_total"), 1.0);
  ASSERT_TRUE(a->link->cancel(ticket).ok());
  EXPECT_EQ(end_of(ticket), Code::aborted);
}

TEST_F(FabricLinkTest, StaleKeyFailsItsBatchAlone) {
  open("efa");
  fake->fail_status = 7;
  EXPECT_EQ(end_of(post(4)), Code::permission);
  EXPECT_EQ(a->metric("kvlane_libfabric_faults_total stale_key"), 1.0);
  EXPECT_EQ(end_of(post(4)), Code::ok);
}

TEST_F(FabricLinkTest, ErrorsOfAPeerLoseIt) {
  const std::pair<int, const char*> cases[] = {{9, "restarted_peer"},
                                               {10, "receiver_not_ready"},
                                               {13, "unresponsive"},
                                               {14, "unknown_peer"},
                                               {15, "unreachable"}};
  for (const auto& [status, cause] : cases) {
    const ExpectLog expected("libfabric.peer_lost");
    open("efa");
    fake->fail_status = status;
    EXPECT_NE(end_of(post(4)), Code::ok);
    EXPECT_TRUE(run([&] { return a->find(Event::Kind::peer_down) != nullptr; }));
    EXPECT_EQ(a->find(Event::Kind::peer_down)->code, Code::peer_lost);
    EXPECT_EQ(a->metric(std::string("kvlane_libfabric_faults_total ") + cause), 1.0);
  }
}

// A peer from which nothing ever comes back: the endpoint goes, batches get their events, and the
// Link talks to whoever lives through a new one.
TEST_F(FabricLinkTest, OperationsThatNeverEndAreStopped) {
  const ExpectLog expected("libfabric.endpoint_replaced");
  const ExpectLog lost("libfabric.peer_lost");
  open("efa");
  fake->cut(0, 1, FakeProvider::Path::swallowed);
  const Ticket ticket = post(8);
  a->poll();
  a->link->close_peer(a->peer);
  EXPECT_EQ(a->link->remove_memory(a->id).code(), Code::exhausted);
  EXPECT_EQ(end_of(ticket), Code::aborted);
  ASSERT_TRUE(run([&] { return a->find(Event::Kind::peer_down) != nullptr; }));
  EXPECT_EQ(a->metric("kvlane_libfabric_endpoints_replaced_total"), 1.0);
  ASSERT_TRUE(run([&] { return b->find(Event::Kind::peer_down) != nullptr; }));
  fake->heal();
  connect();
  EXPECT_EQ(end_of(post(20)), Code::ok);
  EXPECT_EQ(fake->violations(), std::vector<std::string>{});
}

TEST_F(FabricLinkTest, StrangersAreCountedAndDropped) {
  open("fake");
  const std::size_t events = b->events.size();
  fake->inject({});
  fake->inject(std::vector<std::byte>(72, std::byte{0x5A}));
  PeerMessage forged;
  forged.type = MessageType::note;
  forged.note_bytes = 1;
  forged.to_peer = b->peer.value;  // guessed; the secret is not
  const auto bytes = std::as_bytes(std::span(&forged, 1));
  fake->inject({bytes.begin(), bytes.end()});
  EXPECT_EQ(end_of(post(4)), Code::ok);
  EXPECT_EQ(b->metric("kvlane_libfabric_strangers_total malformed"), 2.0);
  EXPECT_EQ(b->metric("kvlane_libfabric_strangers_total unknown_token"), 1.0);
  EXPECT_EQ(b->events.size(), events);
}

// efa-direct first, then with the mode it may insist on, then efa; delivery-complete where offered.
TEST(FabricDevices, EfaIsAskedInOrder) {
  FabricConfig config;
  {
    FakeProvider fake;
    fake.options.direct_mode = FI_RX_CQ_DATA;
    const auto transport = make_transport(config, fake.api());
    ASSERT_EQ(transport->devices().size(), 1U) << transport->why_unusable();
    EXPECT_EQ(transport->devices().front().domain, "efa/efa-direct");
    EXPECT_EQ(transport->devices().front().fence, Fence::av_remove);
    ASSERT_EQ(fake.asked.size(), 4U);
    EXPECT_EQ(fake.asked[0].mode, FI_CONTEXT2);
    EXPECT_EQ(fake.asked[0].fabric, "efa-direct");
    EXPECT_EQ(fake.asked[3].mode, FI_CONTEXT2 | FI_RX_CQ_DATA);
  }
  FakeProvider fake;
  fake.options.direct = false;
  const auto transport = make_transport(config, fake.api());
  ASSERT_EQ(transport->devices().size(), 1U);
  EXPECT_EQ(transport->devices().front().domain, "efa/efa");
  EXPECT_EQ(fake.asked.back().fabric, "");
}

TEST(FabricLibrary, IsMissedAloud) {
  Settings::Source source;
  source.environment = false;
  source.flags = {{"libfabric.library", "/nowhere/libfabric.so.1"}, {"libfabric.providers", "tcp"}};
  const auto settings = Settings::load(transport_settings(), source);
  ASSERT_TRUE(settings.ok());
  const auto transport = make_libfabric_transport(*settings);
  EXPECT_TRUE(transport->devices().empty());
  EXPECT_NE(transport->why_unusable().find("/nowhere/libfabric.so.1"), std::string::npos);
}

// A provider that does not keep the promises is not even asked.
TEST(FabricDevices, ShmIsRefusedByName) {
  FakeOptions options;
  options.provider = "shm";
  FakeProvider fake(options);
  FabricConfig config;
  config.providers = "shm";
  const auto transport = make_transport(config, fake.api());
  EXPECT_TRUE(transport->devices().empty());
  EXPECT_NE(transport->why_unusable().find("shm is not used"), std::string::npos);
  EXPECT_TRUE(fake.asked.empty());
}

// Without an EFA nothing is opened, and no software provider is chosen by itself.
TEST(FabricLibrary, IsLeftAloneWithoutEfa) {
  if (host_has_efa()) GTEST_SKIP() << "this host has an EFA";
  const auto transport = make_libfabric_transport(Settings{});
  EXPECT_TRUE(transport->devices().empty());
  EXPECT_NE(transport->why_unusable().find("EFA"), std::string::npos);
}

}  // namespace
}  // namespace libfabric
}  // namespace kvl
