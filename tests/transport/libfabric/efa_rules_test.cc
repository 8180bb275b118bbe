// The rules of an EFA, one by one: each fails here when it is broken (tests/mutations/fabric.py).
#include <memory>

#include "kvl/log.h"
#include "tests/support/log_guard.h"
#include "tests/transport/libfabric/fabric_fixture.h"
#include "tests/transport/libfabric/fake_objects.h"

namespace kvl::libfabric {
namespace {

using test::ExpectLog;
using test::FakeOptions;
using test::FakeProvider;

class EfaRules : public test::FabricFixture {
 protected:
  const ExpectLog losses{"libfabric.peer_lost"};

  // The next operations of a to b end like this, for the reason itself.
  void expect_loss(const char* cause, Code code = Code::peer_lost) {
    EXPECT_EQ(end_of(post(4)), code) << cause;
    EXPECT_TRUE(run([&] { return a->find(Event::Kind::peer_down) != nullptr; })) << cause;
    EXPECT_GE(a->metric(std::string("kvlane_libfabric_faults_total ") + cause), 1.0);
    fake->heal();
  }
  // Lines of that event, also of level info.
  std::vector<std::string> logged(const std::string& event, const std::function<void()>& work) {
    std::vector<std::string> lines;
    set_log_sink([&](LogLevel, std::string_view line) {
      if (line.starts_with(event)) lines.emplace_back(line);
    });
    set_log_levels("info");
    work();
    set_log_levels("warning");
    test::install_log_guard();
    return lines;
  }
};

TEST_F(EfaRules, DirectIsAskedForWithItsModesAndBits) {
  FakeOptions options = calm();
  options.direct_mode = FI_RX_CQ_DATA;
  open(options);
  ASSERT_GE(fake->asked.size(), 3U);
  EXPECT_EQ(fake->asked.front().fabric, "efa-direct");
  EXPECT_EQ(fake->asked.front().mode, FI_CONTEXT2);
  EXPECT_EQ(fake->asked.back().fabric, "efa-direct");
  EXPECT_EQ(fake->asked.back().mode, FI_CONTEXT2 | FI_RX_CQ_DATA);
  for (const FakeProvider::Asked& asked : fake->asked) {
    EXPECT_EQ(asked.mr_mode, FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY);
  }
  EXPECT_EQ(end_of(post(4)), Code::ok);
}

// Below 1.18 the provider leaves the RDMA of the first devices off.
TEST_F(EfaRules, ApiIsNewEnoughForRdma) {
  FakeOptions options = calm();
  options.rdma_since = FI_VERSION(1, 18);
  open(options);
  EXPECT_EQ(a->link->device().domain, "efa/efa-direct");
  options.version = FI_VERSION(1, 17);  // an old library is asked as it wants to be
  options.rdma_since = 0;
  options.direct = false;
  open(options);
  EXPECT_EQ(fake->asked.back().version, FI_VERSION(1, 17));
}

TEST_F(EfaRules, FallingBackIsSaid) {
  EXPECT_TRUE(logged("libfabric.not_direct", [&] { open(calm()); }).empty());
  FakeOptions options = calm();
  options.direct = false;
  EXPECT_EQ(logged("libfabric.not_direct", [&] { open(options); }).size(), 2U);
  EXPECT_EQ(a->link->device().domain, "efa/efa");
  EXPECT_EQ(end_of(post(4)), Code::ok);
}

TEST_F(EfaRules, OptionsThatCopyBehindOurBackAreOff) {
  open(calm());
  const std::map<int, bool> off{{kSharedMemoryPermitted.name, false},
                                {kCudaApiPermitted.name, false}};
  EXPECT_EQ(fake->set_options, off);
}

TEST_F(EfaRules, SizesAreTheDevices) {
  FakeOptions options = calm();
  options.rma_bytes_max = 64 << 10;
  options.tx_size = 16;
  open(options, 4 << 20);
  op = {0, 0, 0, 0, 256 << 10, 1, 0, 0};
  const Ticket ticket = post_op();
  EXPECT_EQ(end_of(ticket), Code::ok);
  EXPECT_EQ(fake->rma_posts, 4U);
  EXPECT_EQ(end_of(post(200)), Code::ok);
}

// A device that reads and does not write is for whoever pulls.
TEST_F(EfaRules, ReadOnlyDeviceSaysSo) {
  const ExpectLog expected("libfabric.emulated");
  FakeOptions options = calm();
  options.rma_write = false;
  open(options);
  const std::uint32_t caps = a->link->device().caps;
  EXPECT_EQ(caps & static_cast<std::uint32_t>(Cap::write), 0U);
  EXPECT_NE(caps & static_cast<std::uint32_t>(Cap::read), 0U);
  op = {0, 0, 0, 0, 1024, 4, 2048, 2048};
  Batch batch = batch_of_op();
  EXPECT_EQ(a->link->post(batch).code(), Code::unsupported);
  batch.direction = Direction::read;
  EXPECT_TRUE(a->link->post(batch).ok());
  EXPECT_EQ(end_of(batch.ticket), Code::ok);
}

TEST_F(EfaRules, DeviceWithoutRdmaIsTakenOnlyWhenAskedFor) {
  const ExpectLog expected("libfabric.emulated");
  FakeProvider old(calm());
  old.options.rma_write = old.options.rma_read = false;
  FabricConfig plain;
  const auto left = make_transport(plain, old.api());
  EXPECT_TRUE(left->devices().empty());
  EXPECT_NE(left->why_unusable().find("libfabric.emulated"), std::string::npos);
  plain.emulated = true;
  EXPECT_EQ(make_transport(plain, old.api())->devices().size(), 1U);
}

// The target's device turns away whom its Link has not taken yet: the hello is said again.
TEST_F(EfaRules, HelloBeforeTheOtherSideKnowsUs) {
  open(calm());
  a->events.clear();
  b->events.clear();
  a->peer = a->link->open_peer(PeerRole::active).value();
  b->peer = b->link->open_peer(PeerRole::passive).value();
  // Another Link, so that b does not know its address yet.
  test::Side c(*transport, clock);
  c.peer = c.link->open_peer(PeerRole::active).value();
  const Blob from_b = b->link->offer(b->peer).value(), from_c = c.link->offer(c.peer).value();
  ASSERT_TRUE(c.link->accept(c.peer, from_b).ok());
  for (int i = 0; i < 200; ++i) {
    c.poll();
    b->poll();
  }
  EXPECT_GE(c.metric("kvlane_libfabric_faults_total unknown_peer"), 1.0);
  ASSERT_TRUE(b->link->accept(b->peer, from_c).ok());
  EXPECT_TRUE(run([&] {
    c.poll();
    return c.find(Event::Kind::peer_up) != nullptr && b->find(Event::Kind::peer_up) != nullptr;
  }));
}

TEST_F(EfaRules, CutPathIsUnresponsive) {
  open(calm());
  fake->cut(0, 1, FakeProvider::Path::lost);
  expect_loss("unresponsive");
}

TEST_F(EfaRules, ClosedPathIsUnreachable) {
  open(calm());
  fake->cut(0, 1, FakeProvider::Path::refused);
  expect_loss("unreachable");
}

TEST_F(EfaRules, RestartedPeerHasOurQueuePairNoMore) {
  open(calm());
  fake->kill_device(1, 0);  // so that b says no goodbye
  b.reset();
  fake->revive_device(1, 0);
  b = std::make_unique<test::Side>(*transport_b, clock);  // the same number, in another life
  expect_loss("restarted_peer");
}

TEST_F(EfaRules, PeerThatHasClosedDoesNotKnowUs) {
  open(calm());
  b->link->close_peer(b->peer);
  ASSERT_TRUE([&] {
    for (int i = 0; i < 5000 && b->find(Event::Kind::peer_down) == nullptr; ++i) b->poll();
    return b->find(Event::Kind::peer_down) != nullptr;
  }());
  b->control.sent.clear();  // its word is lost on the way
  expect_loss("unknown_peer");
}

TEST_F(EfaRules, PeerThatDoesNotPollIsNotReady) {
  FakeOptions options = calm();
  options.rx_size = 16;
  open(options);
  const std::array<std::byte, 1> note{};
  for (int i = 0; i < 40; ++i) post(1, note);
  for (int i = 0; i < 20'000 && a->find(Event::Kind::peer_down) == nullptr; ++i) a->poll();
  EXPECT_NE(a->find(Event::Kind::peer_down), nullptr);
  EXPECT_GE(a->metric("kvlane_libfabric_faults_total receiver_not_ready"), 1.0);
}

TEST_F(EfaRules, StaleKeyIsNotTheLossOfThePeer) {
  open(calm());
  ASSERT_TRUE(b->link->remove_memory(b->id).ok());  // … and b has not yet said so
  const Ticket ticket = post(4);
  for (int i = 0; i < 1000 && a->find(Event::Kind::batch, ticket) == nullptr; ++i) a->poll();
  ASSERT_NE(a->find(Event::Kind::batch, ticket), nullptr);
  EXPECT_EQ(a->find(Event::Kind::batch, ticket)->code, Code::permission);
  EXPECT_EQ(a->find(Event::Kind::peer_down), nullptr);
}

TEST_F(EfaRules, DeadDeviceLosesItsPeers) {
  open(calm());
  const Ticket ticket = post(100);
  a->poll();
  fake->kill_device(0, 0);
  EXPECT_EQ(end_of(ticket), Code::peer_lost);
  EXPECT_TRUE(run([&] { return a->find(Event::Kind::peer_down) != nullptr; }));
}

TEST_F(EfaRules, TooMuchToRegisterIsExhausted) {
  FakeOptions options = calm();
  options.registrations_max = 3;
  open(options);
  std::vector<std::byte> more(4096);
  Status status;
  for (int i = 0; i < 4 && status.ok(); ++i) {
    status = a->link->add_memory({more.data(), more.size(), MemoryKind::host, 0}).status();
  }
  EXPECT_EQ(status.code(), Code::exhausted);
}

// b has shut a out without a's word. The same two meet again: what a's old session still posts must
// not land, and the new one comes up only when a says that the old one is over.
TEST_F(EfaRules, FencedAddressComesBackWhenItIsClear) {
  open(calm());
  const PeerId old = a->peer;
  const RemoteId old_remote = a->remote;
  b->link->close_peer(b->peer);
  for (int i = 0; i < 5000 && b->find(Event::Kind::peer_down) == nullptr; ++i) b->poll();
  ASSERT_NE(b->find(Event::Kind::peer_down), nullptr);
  b->control.sent.clear();  // a learns nothing
  b->events.clear();
  a->events.clear();
  a->peer = a->link->open_peer(PeerRole::active).value();
  b->peer = b->link->open_peer(PeerRole::passive).value();
  ASSERT_TRUE(a->link->accept(a->peer, b->link->offer(b->peer).value()).ok());
  ASSERT_TRUE(b->link->accept(b->peer, a->link->offer(a->peer).value()).ok());
  run([] { return false; }, 100);
  EXPECT_EQ(b->find(Event::Kind::peer_up), nullptr) << "up while the old session can still write";
  op = {0, 0, 0, 0, 1024, 1, 0, 0};
  Batch late = batch_of_op();
  late.peer = old;
  late.remotes = std::span(&old_remote, 1);
  const std::vector<std::byte> before = b->memory;
  ASSERT_TRUE(a->link->post(late).ok());
  EXPECT_NE(end_of(late.ticket), Code::ok);
  EXPECT_EQ(b->memory, before) << "a fenced session wrote";
  EXPECT_TRUE(run([&] {
    return a->find(Event::Kind::peer_up) != nullptr && b->find(Event::Kind::peer_up) != nullptr;
  }));
}

// a has been told that its note arrived: b shows it, though it closes before it has looked.
TEST_F(EfaRules, NotesThatHaveArrivedAreShownAtClose) {
  open(calm());
  const std::array<std::byte, 1> note{std::byte{9}};
  const Ticket ticket = post(1, note);
  for (int i = 0; i < 1000 && a->find(Event::Kind::batch, ticket) == nullptr; ++i) a->poll();
  ASSERT_NE(a->find(Event::Kind::batch, ticket), nullptr);
  ASSERT_EQ(a->find(Event::Kind::batch, ticket)->code, Code::ok);
  b->link->close_peer(b->peer);
  EXPECT_TRUE(run([&] { return b->find(Event::Kind::peer_down) != nullptr; }));
  EXPECT_NE(b->find(Event::Kind::note), nullptr);
}

// Immediates of nobody we know harm nobody, also where one uses up a receive.
TEST_F(EfaRules, ImmediatesOfStrangersDoNoHarm) {
  for (const bool unsolicited : {true, false}) {
    FakeOptions options = calm();
    options.unsolicited = unsolicited;
    open(options);
    for (std::uint32_t i = 0; i < 20; ++i) {
      fake->inject_immediate(i);
      b->poll();
      a->poll();
    }
    EXPECT_EQ(end_of(post(20)), Code::ok);
    EXPECT_EQ(b->metric("kvlane_libfabric_strangers_total unknown_token"), 20.0);
    EXPECT_EQ(b->metric("kvlane_libfabric_strangers_total malformed"), 0.0);
  }
}

// Whoever cancels and then loses the peer does not know what still lands there.
TEST_F(EfaRules, LossCountsMoreThanACancel) {
  open(calm());
  fake->cut(0, 1, FakeProvider::Path::answers_lost);
  const Ticket ticket = post(500);
  a->poll();
  ASSERT_TRUE(a->link->cancel(ticket).ok());
  EXPECT_EQ(end_of(ticket), Code::peer_lost);
}

}  // namespace
}  // namespace kvl::libfabric
