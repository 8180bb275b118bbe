// Chains of work requests: what is posted, signalled, refused in the middle, copied inline; and
// that no queue can overflow.
#include <array>

#include "tests/transport/verbs/link_fixture.h"

namespace kvl::verbs {
namespace {

constexpr std::array<std::byte, 2> kNote{std::byte{4}, std::byte{2}};

TEST_F(VerbsLinkTest, ChainsAreLongAndSeldomSignalled) {
  open();
  fake.chains = fake.signalled = 0;
  EXPECT_EQ(end_of(post(100, kNote)), Code::ok);
  EXPECT_TRUE(run([&] { return b->find(Event::Kind::note) != nullptr; }));
  EXPECT_EQ(b->find(Event::Kind::note)->note_bytes, 2);
  EXPECT_TRUE(same(100));
  EXPECT_EQ(fake.requests, 101U);
  EXPECT_EQ(fake.chains, 2U);
  EXPECT_EQ(fake.largest_chain, 64U);
  EXPECT_EQ(fake.signalled, 4U);  // the 32nd and 64th, the 32nd of the second chain, the note
}

TEST_F(VerbsLinkTest, NeighboursAreOneRequest) {
  open();
  std::vector<PageOp> touching;
  for (std::uint64_t i = 0; i < 8; ++i) touching.push_back({0, 0, i * 512, i * 512, 512, 1, 0, 0});
  Batch batch;
  batch.ticket = {++tickets};
  batch.peer = a->peer;
  batch.ops = touching;
  batch.locals = std::span(&a->id, 1);
  batch.remotes = std::span(&a->remote, 1);
  ASSERT_TRUE(a->link->post(batch).ok());
  EXPECT_EQ(end_of(batch.ticket), Code::ok);
  EXPECT_EQ(fake.requests, 1U);
}

TEST_F(VerbsLinkTest, LongRunsAreCutAsThePortWants) {
  fake.message_bytes_max = 8192;
  open();
  EXPECT_EQ(end_of(post(1, {}, Direction::write, 64 << 10)), Code::ok);
  EXPECT_EQ(fake.requests, 8U);
  EXPECT_TRUE(same(1, 64 << 10));
}

TEST_F(VerbsLinkTest, ReadsBringBytes) {
  open();
  std::fill(b->memory.begin(), b->memory.end(), std::byte{7});
  EXPECT_EQ(end_of(post(40, {}, Direction::read)), Code::ok);
  EXPECT_TRUE(same(40));
  EXPECT_EQ(a->memory[0], std::byte{7});
}

TEST_F(VerbsLinkTest, DeviceThatServesNoReads) {
  fake.limits.max_qp_rd_atom = 0;
  make_sides();
  introduce();
  a->remote = a->link->import_memory(a->peer, name_of_b()).value();
  EXPECT_EQ(end_of(post(1, {}, Direction::read)), Code::unsupported);
  EXPECT_EQ(try_post(1, {}, Direction::read).code(), Code::unsupported);
  EXPECT_EQ(end_of(post(1)), Code::ok);
}

// The device is full for a while, at every place of a chain: nothing is lost, nothing is posted
// twice, and a silent end of a chain is not waited for.
TEST_F(VerbsLinkTest, ChainTakenInPart) {
  open();
  for (std::uint64_t first = 0; first < 80; ++first) {
    std::fill(b->memory.begin(), b->memory.end(), std::byte{});
    fake.set_numbers();
    fake.refuse_at = {first, first, first + 3};
    const std::size_t notes = b->events.size();
    EXPECT_EQ(end_of(post(79, kNote)), Code::ok);
    EXPECT_EQ(fake.requests, 80U);
    EXPECT_TRUE(same(79));
    EXPECT_TRUE(run([&] { return b->events.size() == notes + 1; }));
  }
  EXPECT_GE(a->metric("kvlane_verbs_again_total"), 80.0);
}

// What was taken ends silently, the rest is cancelled: an empty write asks for the completion.
TEST_F(VerbsLinkTest, SilentEndIsAskedFor) {
  open();
  fake.refuse_at = {5, 5};
  const Ticket ticket = post(20);
  a->poll();
  EXPECT_EQ(fake.requests, 5U);
  ASSERT_TRUE(a->link->cancel(ticket).ok());
  ASSERT_EQ(end_of(ticket), Code::aborted);
  EXPECT_EQ(fake.requests, 6U);
  EXPECT_EQ(a->find(Event::Kind::batch, ticket)->bytes_done, 5U * 1024);
}

TEST_F(VerbsLinkTest, RefusedRequestLosesThePeer) {
  const test::ExpectLog expected("verbs.peer_lost");
  open();
  fake.refuse_at = {10};
  fake.refuse_error = EINVAL;
  EXPECT_EQ(end_of(post(20)), Code::peer_lost);
  EXPECT_TRUE(run([&] { return a->find(Event::Kind::peer_down) != nullptr; }));
  EXPECT_EQ(fault(*a, "local"), 1.0);
}

// The smallest queues that a device could have, many batches at once, and a slow device: nothing
// overflows (the device counts that as misuse), and everything arrives.
TEST_F(VerbsLinkTest, SmallQueuesDoNotOverflow) {
  fake.limits.max_cqe = 40;
  fake.limits.max_qp_wr = 24;
  fake.limits.max_srq_wr = 16;
  fake.pace = 3;
  open();
  std::vector<Ticket> all;
  for (int i = 0; i < 20; ++i) all.push_back(post(100, kNote));
  for (const Ticket ticket : all) EXPECT_EQ(end_of(ticket), Code::ok);
  EXPECT_TRUE(same(100));
  const auto notes = [&] {
    return std::count_if(b->events.begin(), b->events.end(),
                         [](const Event& e) { return e.kind == Event::Kind::note; });
  };
  EXPECT_TRUE(run([&] { return notes() == 20; }));
}

// All that is under way to several peers fails at once: the completion queue has room for it.
TEST_F(VerbsLinkTest, EverythingMayFailAtOnce) {
  const test::ExpectLog expected("verbs.peer_lost");
  fake.limits.max_cqe = 40;
  fake.limits.max_srq_wr = 16;
  make_sides();
  std::vector<std::pair<PeerId, RemoteId>> peers;
  for (int i = 0; i < 4; ++i) {
    a->events.clear();
    b->events.clear();
    connect();
    peers.emplace_back(a->peer, a->remote);
  }
  fake.silent = true;
  for (const auto& [peer, remote] : peers) {
    a->peer = peer;
    a->remote = remote;
    post(100);
  }
  for (int i = 0; i < 10; ++i) a->poll();
  fake.break_queue_pairs();
  fake.silent = false;
  clock.now += 100'000'000;
  const auto downs = [](const test::LinkSide& side) {
    return std::count_if(side.events.begin(), side.events.end(),
                         [](const Event& e) { return e.kind == Event::Kind::peer_down; });
  };
  EXPECT_TRUE(run([&] { return downs(*a) == 4 && downs(*b) == 4; }));
}

// A receiver that does not poll has no buffers some time: senders wait, and nothing is lost.
TEST_F(VerbsLinkTest, ReceiverThatIsNotReady) {
  config.rq_depth = 16;
  open();
  std::vector<Ticket> all;
  for (int i = 0; i < 60; ++i) all.push_back(post(0, kNote));
  for (int i = 0; i < 100; ++i) a->poll();
  EXPECT_EQ(a->find(Event::Kind::batch, all.back()), nullptr);
  for (const Ticket ticket : all) EXPECT_EQ(end_of(ticket), Code::ok);
  EXPECT_TRUE(run([&] { return b->metric("kvlane_verbs_notes_received_total") == 60.0; }));
}

TEST_F(VerbsLinkTest, SmallWritesAreInline) {
  open();
  fake.inlined = 0;
  EXPECT_EQ(end_of(post(10, {}, Direction::write, 64)), Code::ok);
  EXPECT_EQ(fake.inlined, 0U);  // 64 bytes at most, where 128 were asked for: none at all
  config.inline_bytes = 64;
  a.reset();
  b.reset();
  open();
  fake.inlined = 0;
  EXPECT_EQ(end_of(post(10, {}, Direction::write, 64)), Code::ok);
  EXPECT_EQ(fake.inlined, 10U);
  EXPECT_TRUE(same(10, 64));
  EXPECT_EQ(end_of(post(10, {}, Direction::write, 65)), Code::ok);
  EXPECT_EQ(fake.inlined, 10U);
}

TEST_F(VerbsLinkTest, BytesUnderWayAreBounded) {
  config.inflight_bytes = 65536;
  fake.pace = 1;
  open();
  const Ticket ticket = post(100, {}, Direction::write, 4096);
  a->poll();
  EXPECT_LE(fake.requests, 17U);
  EXPECT_EQ(end_of(ticket), Code::ok);
  EXPECT_TRUE(same(100, 4096));
}

}  // namespace
}  // namespace kvl::verbs
