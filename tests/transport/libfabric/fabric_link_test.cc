// The libfabric Link over a provider in memory: what no stock provider does on demand.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>

#include "kvl/transport.h"
#include "tests/support/log_guard.h"
#include "tests/transport/fabric/link_side.h"
#include "tests/transport/libfabric/fake_provider.h"
#include "transport/libfabric/fabric_device.h"
#include "transport/libfabric/fabric_transport.h"
#include "transport/libfabric/fabric_wire.h"

namespace kvl {
std::unique_ptr<Transport> make_libfabric_transport(const Settings&);

namespace libfabric {
namespace {

using test::ExpectLog;
using test::FakeOptions;
using test::FakeProvider;

// Time goes on with every poll of either side.
struct StepClock final : Clock {
  std::int64_t now_ns() const override { return now; }
  std::int64_t now = 1'000'000;
};
struct Side : test::LinkSide {
  Side(Transport& transport, StepClock& step) : LinkSide(transport, step), clock(step) {}
  void poll() {
    clock.now += 100'000;
    LinkSide::poll();
  }
  StepClock& clock;
};

class FabricLinkTest : public ::testing::Test {
 protected:
  void open(const std::string& provider, std::int64_t op_bytes = 4096) {
    FakeOptions options;
    options.provider = provider;
    options.again = options.late = 0;  // where a test says so, and nowhere else
    options.delay_max = 1;
    open(options, op_bytes);
  }
  void open(const FakeOptions& options, std::int64_t op_bytes = 4096) {
    finish();
    fake = std::make_unique<FakeProvider>(options);
    FabricConfig config;
    config.providers = options.provider;
    config.op_bytes = op_bytes;
    config.close_timeout_ms = 50;
    config.give_up_ms = 200;
    transport = make_transport(config, fake->api());
    a = std::make_unique<Side>(*transport, clock);
    b = std::make_unique<Side>(*transport, clock);
    connect();
    fake->rma_tries = 0;
  }
  void connect() {
    a->events.clear();
    b->events.clear();
    a->peer = a->link->open_peer(PeerRole::active).value();
    b->peer = b->link->open_peer(PeerRole::passive).value();
    const Blob from_a = a->link->offer(a->peer).value(), from_b = b->link->offer(b->peer).value();
    ASSERT_TRUE(a->link->accept(a->peer, from_b).ok());
    ASSERT_TRUE(b->link->accept(b->peer, from_a).ok());
    ASSERT_TRUE(run([&] {
      return a->find(Event::Kind::peer_up) != nullptr && b->find(Event::Kind::peer_up) != nullptr;
    }));
    const Blob name = b->link->export_memory(b->id, b->peer).value();
    a->remote = a->link->import_memory(a->peer, name).value();
    std::iota(reinterpret_cast<unsigned char*>(a->memory.data()),
              reinterpret_cast<unsigned char*>(a->memory.data()) + a->memory.size(), 0);
  }
  // Control messages go to the other side's present peer.
  void deliver_control() {
    for (const auto& [from, to] : {std::pair{a.get(), b.get()}, std::pair{b.get(), a.get()}}) {
      for (const auto& [peer, bytes] : std::exchange(from->control.sent, {})) {
        to->link->on_control(to->peer, bytes);
      }
    }
  }
  bool run(const std::function<bool()>& done) {
    for (int i = 0; i < 10'000 && !done(); ++i) {
      a->poll();
      b->poll();
      deliver_control();
    }
    return done();
  }
  // `pages` pages of 1 KiB, 2 KiB apart, so that no two are merged.
  Ticket post(std::uint32_t pages, std::span<const std::byte> note = {}) {
    op = {0, 0, 0, 0, 1024, pages, 2048, 2048};
    Batch batch;
    batch.ticket = {++tickets};
    batch.peer = a->peer;
    batch.ops = std::span(&op, 1);
    batch.locals = std::span(&a->id, 1);
    batch.remotes = std::span(&a->remote, 1);
    batch.note = note;
    EXPECT_TRUE(a->link->post(batch).ok());
    return batch.ticket;
  }
  Code end_of(Ticket ticket) {
    const bool ended = run([&] { return a->find(Event::Kind::batch, ticket) != nullptr; });
    EXPECT_TRUE(ended);
    return ended ? a->find(Event::Kind::batch, ticket)->code : Code::internal;
  }

  void TearDown() override { finish(); }
  void finish() {
    a.reset();
    b.reset();
    if (!fake) return;
    EXPECT_EQ(fake->violations(), std::vector<std::string>{});
  }

  StepClock clock;
  std::unique_ptr<FakeProvider> fake;  // outlives the Links
  std::unique_ptr<Transport> transport;
  std::unique_ptr<Side> a, b;
  PageOp op;
  std::uint64_t tickets = 0;
};

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
  fake->cut(0, 0, FakeProvider::Path::swallowed);
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
