// Failures of requests, queue pairs, ports and devices, and what peers and their batches hear of
// it.
#include <poll.h>

#include <array>

#include "tests/transport/verbs/link_fixture.h"
#include "transport/fabric/peer_wire.h"

namespace kvl::verbs {
namespace {

using test::ExpectLog;

constexpr std::int64_t kMs = 1'000'000;
constexpr std::array<std::byte, 1> kNote{std::byte{9}};

class VerbsLossTest : public VerbsLinkTest {
 protected:
  bool lost(const test::LinkSide& side) const {
    return side.find(Event::Kind::peer_down) != nullptr &&
           side.find(Event::Kind::peer_down)->code == Code::peer_lost;
  }
};

// By status: the failing batch's code, and the cause that is counted. All others end with the peer.
TEST_F(VerbsLossTest, ErrorsOfRequestsLoseThePeer) {
  struct Case {
    ibv_wc_status status;
    Code code;
    const char* cause;
  };
  const Case cases[] = {
      {IBV_WC_REM_ACCESS_ERR, Code::permission, "stale_key"},
      {IBV_WC_RETRY_EXC_ERR, Code::peer_lost, "unresponsive"},
      {IBV_WC_RNR_RETRY_EXC_ERR, Code::unavailable, "receiver_not_ready"},
      {IBV_WC_REM_INV_REQ_ERR, Code::peer_lost, "refused"},
      {IBV_WC_LOC_QP_OP_ERR, Code::unavailable, "local"},
      {IBV_WC_WR_FLUSH_ERR, Code::peer_lost, "flushed"},
      {IBV_WC_FATAL_ERR, Code::unavailable, "other"},
  };
  for (const Case& each : cases) {
    const ExpectLog expected("verbs.peer_lost");
    open();
    fake.pace = 4;
    fake.fail_status = each.status;
    fake.fail_at = {45};
    const Ticket before = post(30), hit = post(30, kNote), after = post(30);
    EXPECT_EQ(end_of(before), Code::ok) << each.cause;
    EXPECT_EQ(end_of(hit), each.code) << each.cause;
    EXPECT_EQ(a->find(Event::Kind::batch, hit)->bytes_done, 15U * 1024);
    EXPECT_EQ(end_of(after), Code::peer_lost);
    EXPECT_TRUE(run([&] { return lost(*a); }));
    EXPECT_EQ(b->find(Event::Kind::note), nullptr);
    EXPECT_EQ(fault(*a, each.cause), 1.0);
    EXPECT_EQ(a->events.back().kind, Event::Kind::peer_down);
    fake.fail_at.clear();
    fake.pace = 0;
    a.reset();
    b.reset();
  }
}

// A name that its owner has removed, used before word of that has come: the target's device refuses
// it, nothing is written, and both sides lose the connection.
TEST_F(VerbsLossTest, RemovedMemoryIsRefusedByTheDevice) {
  const ExpectLog expected("verbs.peer_lost");
  open();
  ASSERT_TRUE(b->link->remove_memory(b->id).ok());
  const Ticket ticket = post(4, kNote);
  for (int i = 0; i < 10; ++i) a->poll();
  ASSERT_NE(a->find(Event::Kind::batch, ticket), nullptr);
  EXPECT_EQ(a->find(Event::Kind::batch, ticket)->code, Code::permission);
  clock.now += 100 * kMs;  // devices are asked for events now and then
  EXPECT_TRUE(run([&] { return lost(*a) && lost(*b); }));
  EXPECT_EQ(b->memory[0], std::byte{});
  EXPECT_EQ(fault(*b, "flushed"), 1.0);
}

// … and after it has come, here.
TEST_F(VerbsLossTest, RemovedMemoryIsKnown) {
  open();
  ASSERT_TRUE(b->link->remove_memory(b->id).ok());
  for (int i = 0; i < 10; ++i) {
    b->poll();
    a->poll();
  }
  EXPECT_EQ(try_post(4).code(), Code::permission);
  EXPECT_EQ(a->find(Event::Kind::peer_down), nullptr);
}

TEST_F(VerbsLossTest, ClosedPeerIsFlushedBeforeItsEvents) {
  open();
  fake.pace = 2;
  const Ticket ticket = post(100, kNote);
  a->poll();
  a->link->close_peer(a->peer);
  const std::vector<std::byte> written = b->memory;
  EXPECT_EQ(end_of(ticket), Code::aborted);
  EXPECT_TRUE(run([&] { return a->find(Event::Kind::peer_down) != nullptr && lost(*b); }));
  EXPECT_EQ(b->memory, written) << "a stopped queue pair went on";
  EXPECT_EQ(a->find(Event::Kind::peer_down)->code, Code::aborted);
  EXPECT_EQ(fake.queue_pairs(), 0U);
  EXPECT_EQ(b->find(Event::Kind::note), nullptr);
}

// A device that never says what has become of requests: its queue pair is destroyed in the end, and
// then they are over, too.
TEST_F(VerbsLossTest, QueuePairThatDoesNotFlush) {
  open();
  fake.silent = true;
  fake.flushes = false;
  const Ticket ticket = post(100);
  a->poll();
  a->link->close_peer(a->peer);
  for (int i = 0; i < 100; ++i) a->poll();
  EXPECT_EQ(a->find(Event::Kind::batch, ticket), nullptr);
  EXPECT_EQ(a->link->remove_memory(a->id).code(), Code::exhausted);
  clock.now += config.close_timeout_ms * kMs;
  EXPECT_EQ(end_of(ticket), Code::aborted);
  EXPECT_NE(a->find(Event::Kind::peer_down), nullptr);
  EXPECT_TRUE(a->link->remove_memory(a->id).ok());
  fake.silent = false;
}

TEST_F(VerbsLossTest, IdlePeerIsProbed) {
  const ExpectLog expected("verbs.peer_lost");
  open();
  for (int i = 1; i <= 3; ++i) {
    clock.now += config.probe_ms * kMs;
    a->poll();
    a->poll();
    EXPECT_EQ(fake.requests, static_cast<std::uint64_t>(i));
  }
  fake.fail_at = {3};
  clock.now += config.probe_ms * kMs;
  EXPECT_TRUE(run([&] { return lost(*a); }));
}

TEST_F(VerbsLossTest, LinkThatEndsSaysGoodbye) {
  open();
  a.reset();
  for (int i = 0; i < 10; ++i) b->poll();
  EXPECT_TRUE(lost(*b));
}

TEST_F(VerbsLossTest, BrokenQueuePairIsNoticedWhileAsleep) {
  const ExpectLog expected("verbs.peer_lost");
  open();
  ASSERT_TRUE(run([&] { return a->link->arm(); }));
  pollfd sleeper{a->link->wait_fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&sleeper, 1, 0), 0);
  fake.break_queue_pairs();
  EXPECT_EQ(::poll(&sleeper, 1, 0), 1);
  EXPECT_FALSE(a->link->arm());
  clock.now += 100 * kMs;
  EXPECT_TRUE(run([&] { return lost(*a) && lost(*b); }));
  EXPECT_EQ(fault(*a, "flushed"), 1.0);
}

TEST_F(VerbsLossTest, PortThatGoesDownLosesItsPeers) {
  const ExpectLog expected("verbs.device_failed");
  open();
  fake.raise(IBV_EVENT_PORT_ERR, 2);  // another one
  clock.now += 100 * kMs;
  a->poll();
  a->poll();
  EXPECT_EQ(a->find(Event::Kind::peer_down), nullptr);
  fake.raise(IBV_EVENT_PORT_ERR);
  clock.now += 100 * kMs;
  EXPECT_TRUE(run([&] { return lost(*a) && lost(*b); }));
  EXPECT_EQ(fault(*a, "port_down"), 1.0);
  // It comes back with another address.
  fake.ports[0].gids[1] = test::gid_entry(3, IBV_GID_TYPE_ROCE_V2, "::ffff:10.0.0.9");
  fake.raise(IBV_EVENT_PORT_ACTIVE);
  clock.now += 100 * kMs;
  a->poll();
  b->poll();
  a->events.clear();
  b->events.clear();
  connect();
  EXPECT_EQ(fake.last_ready.ah_attr.grh.sgid_index, 3);
  EXPECT_EQ(end_of(post(4)), Code::ok);
}

TEST_F(VerbsLossTest, PortWithoutAnAddress) {
  const ExpectLog expected("verbs.no_address");
  open();
  fake.ports[0].gids.clear();
  fake.raise(IBV_EVENT_GID_CHANGE);
  clock.now += 100 * kMs;
  EXPECT_EQ(end_of(post(4)), Code::ok);
}

TEST_F(VerbsLossTest, DeviceThatIsGone) {
  const ExpectLog expected("verbs.device_failed");
  open();
  fake.silent = true;
  fake.flushes = false;
  const Ticket ticket = post(10);
  a->poll();
  fake.raise(IBV_EVENT_DEVICE_FATAL);
  clock.now += 100 * kMs;
  EXPECT_EQ(end_of(ticket), Code::peer_lost);
  EXPECT_TRUE(run([&] { return lost(*a); }));
  EXPECT_EQ(a->link->open_peer(PeerRole::active).code(), Code::unavailable);
  EXPECT_EQ(fault(*a, "device_gone"), 1.0);
}

TEST_F(VerbsLossTest, NobodyAnswers) {
  make_sides();
  introduce();
  const Ticket early = post(0, kNote);
  const Memory extra{a->memory.data(), 4096, MemoryKind::host, 0, Access::remote_all};
  const MemoryId removed = a->link->add_memory(extra).value();
  ASSERT_TRUE(a->link->export_memory(removed, a->peer).ok());
  ASSERT_TRUE(a->link->remove_memory(removed).ok());  // the peer is to be told
  for (int i = 0; i < 10; ++i) a->poll();
  EXPECT_EQ(fake.requests, 0U) << "sent to a queue pair that may not be connected yet";
  clock.now += config.connect_timeout_ms * kMs;
  EXPECT_TRUE(run([&] { return a->find(Event::Kind::peer_down) != nullptr; }));
  EXPECT_EQ(a->find(Event::Kind::peer_down)->code, Code::timed_out);
  EXPECT_EQ(end_of(early), Code::timed_out);
}

// Whoever sleeps between the steps of connecting is woken for each.
TEST_F(VerbsLossTest, ConnectingWhileAsleep) {
  make_sides();
  introduce();
  const auto awake = [](test::LinkSide& side) {
    while (!side.link->arm()) side.poll();
  };
  awake(*a);
  awake(*b);
  ASSERT_EQ(a->control.sent.size(), 1U);
  ASSERT_EQ(b->control.sent.size(), 1U);
  deliver_control();
  awake(*a);
  awake(*b);
  awake(*a);
  EXPECT_NE(a->find(Event::Kind::peer_up), nullptr);
  EXPECT_NE(b->find(Event::Kind::peer_up), nullptr);
}

TEST_F(VerbsLossTest, StrangersAreCountedAndDropped) {
  open();
  const std::size_t events = b->events.size();
  PeerMessage forged;
  forged.type = MessageType::note;
  forged.note_bytes = 1;
  forged.to_peer = b->peer.value;  // guessed; the secret is not
  const auto bytes = std::as_bytes(std::span(&forged, 1));
  fake.inject({bytes.begin(), bytes.end()});
  fake.inject(std::vector<std::byte>(sizeof(forged), std::byte{0x5A}));
  fake.inject(std::vector<std::byte>(3, std::byte{0x5A}));
  b->link->on_control(b->peer, bytes);
  EXPECT_EQ(end_of(post(4)), Code::ok);
  EXPECT_EQ(b->metric("kvlane_verbs_strangers_total malformed"), 3.0);
  EXPECT_EQ(b->metric("kvlane_verbs_strangers_total unknown_token"), 1.0);
  EXPECT_EQ(b->events.size(), events);
}

}  // namespace
}  // namespace kvl::verbs
