// Notes that wait for counted immediates: never early, never lost, never more than the queue holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "tests/support/log_guard.h"
#include "tests/transport/libfabric/fabric_fixture.h"
#include "transport/fabric/peer_wire.h"
#include "transport/libfabric/fabric_wire.h"

namespace kvl::libfabric {
namespace {

using test::ExpectLog;
using test::FakeOptions;
using test::FakeProvider;
using test::Side;

class FabricCounts : public test::FabricFixture {
 protected:
  static double counted(const Side& side) {
    return side.metric("kvlane_libfabric_notes_counted_total");
  }
  static std::size_t notes(const Side& side) {
    return static_cast<std::size_t>(
        std::count_if(side.events.begin(), side.events.end(),
                      [](const Event& event) { return event.kind == Event::Kind::note; }));
  }
  // Moves one batch and waits until its note is seen.
  void move(std::uint32_t pages) {
    const std::size_t before = notes(*b);
    EXPECT_EQ(end_of(post(pages, note)), Code::ok);
    EXPECT_TRUE(run([&] { return notes(*b) == before + 1; }));
  }
  // Until b's grant is here.
  void settle() {
    run([] { return false; }, 20);
  }

  const std::array<std::byte, 1> note{std::byte{9}};
};

TEST_F(FabricCounts, SizeDecides) {
  open(calm());
  settle();
  move(16);
  EXPECT_EQ(counted(*b), 1.0);
  EXPECT_EQ(b->metric("kvlane_libfabric_immediates_total"), 16.0);
  move(17);
  EXPECT_EQ(counted(*b), 1.0) << "many writes, each with a completion at the target";
  EXPECT_EQ(b->metric("kvlane_libfabric_immediates_total"), 16.0);
}

// Neighbours are one write, and one that is too long is several.
TEST_F(FabricCounts, OperationsAreCountedAndNotPages) {
  open(calm());
  settle();
  op = {0, 0, 0, 0, 1024, 64, 1024, 1024};  // 64 KiB in a row, by 4 KiB
  EXPECT_EQ(end_of(post_op(note)), Code::ok);
  EXPECT_TRUE(run([&] { return counted(*b) == 1.0; }));
  EXPECT_EQ(b->metric("kvlane_libfabric_immediates_total"), 16.0);
}

// Immediates pass other writes' data, notes pass immediates: when a note is seen, all is there.
TEST_F(FabricCounts, NoteComesAfterAllBytes) {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    FakeOptions options;
    options.seed = seed;
    options.segment_bytes = 256;
    open(options);
    std::vector<std::unique_ptr<PageOp>> ops;
    std::vector<std::array<std::byte, 1>> numbers(24);
    std::size_t checked = 0;
    const auto check = [&] {
      for (; checked < b->events.size(); ++checked) {
        const Event& event = b->events[checked];
        if (event.kind != Event::Kind::note) continue;
        const PageOp& moved = *ops.at(static_cast<std::size_t>(event.note[0]));
        for (std::uint64_t i = 0; i < moved.count; ++i) {
          const auto at = static_cast<std::ptrdiff_t>(moved.local_offset + i * 2048);
          ASSERT_TRUE(std::equal(a->memory.begin() + at, a->memory.begin() + at + 1024,
                                 b->memory.begin() + at))
              << "a note before its bytes, seed " << seed;
        }
      }
    };
    std::uint64_t page = 0;
    for (std::uint32_t i = 0; i < 24; ++i) {
      const std::uint32_t pages = 1 + i % 16;
      ops.push_back(std::make_unique<PageOp>(
          PageOp{0, 0, page * 2048, page * 2048, 1024, pages, 2048, 2048}));
      page += pages;
      numbers[i][0] = static_cast<std::byte>(i);
      Batch batch = batch_of_op();
      batch.ops = std::span(ops.back().get(), 1);
      batch.note = numbers[i];
      ASSERT_TRUE(a->link->post(batch).ok());
      run(
          [&] {
            check();
            return false;
          },
          30);
    }
    ASSERT_TRUE(run([&] {
      check();
      return notes(*b) == 24;
    })) << "seed "
        << seed;
    EXPECT_GT(counted(*b), 10.0);
  }
}

// b stands still: what a may have under way is what b's queue has room for.
TEST_F(FabricCounts, QueueOfTheTargetDoesNotOverrun) {
  FakeOptions options = calm();
  options.tx_size = options.rx_size = 16;
  adjust = [](FabricConfig& changed) { changed.immediates = kImmediatesOfPeer; };
  open(options);
  settle();
  std::vector<Ticket> tickets_of_a;
  for (int i = 0; i < 14; ++i) tickets_of_a.push_back(post(16, note));
  for (int i = 0; i < 3000; ++i) a->poll();
  EXPECT_EQ(fake->immediates, kImmediatesOfPeer);
  for (const Ticket ticket : tickets_of_a) EXPECT_EQ(end_of(ticket), Code::ok);
  EXPECT_TRUE(run([&] { return notes(*b) == 14; }));
  EXPECT_EQ(counted(*b), 8.0);
  move(16);  // slots come back
  EXPECT_EQ(counted(*b), 9.0);
}

TEST_F(FabricCounts, PeersBeyondTheRoomSendTheirNotesTheOtherWay) {
  FakeOptions options = calm();
  options.tx_size = options.rx_size = 32;
  adjust = [](FabricConfig& changed) { changed.immediates = 2 * kImmediatesOfPeer - 1; };
  open(options);
  Side c(*transport, clock);
  c.peer = c.link->open_peer(PeerRole::active).value();
  const PeerId of_b = b->link->open_peer(PeerRole::passive).value();
  ASSERT_TRUE(c.link->accept(c.peer, b->link->offer(of_b).value()).ok());
  ASSERT_TRUE(b->link->accept(of_b, c.link->offer(c.peer).value()).ok());
  ASSERT_TRUE(run([&] {
    c.poll();
    return c.find(Event::Kind::peer_up) != nullptr;
  }));
  c.remote = c.link->import_memory(c.peer, b->link->export_memory(b->id, of_b).value()).value();
  settle();
  op = {0, 0, 0, 0, 1024, 16, 2048, 2048};
  for (std::uint64_t i = 0; i < 12; ++i) {
    Batch batch = batch_of_op();
    batch.note = note;
    ASSERT_TRUE(a->link->post(batch).ok());
    batch.peer = c.peer;
    batch.locals = std::span(&c.id, 1);
    batch.remotes = std::span(&c.remote, 1);
    batch.ticket = {++tickets};
    ASSERT_TRUE(c.link->post(batch).ok());
  }
  for (int i = 0; i < 3000; ++i) {
    a->poll();
    c.poll();
  }
  EXPECT_TRUE(run([&] {
    c.poll();
    return notes(*b) == 24;
  }));
  EXPECT_EQ(b->metric("kvlane_libfabric_immediates_total"), kImmediatesOfPeer);
}

// Batches that end badly say how much of them is to be counted; slots do not run out.
TEST_F(FabricCounts, BadEndsGiveTheirSlotsBack) {
  open(calm());
  settle();
  for (std::uint64_t round = 0; round < 24; ++round) {
    if (round % 2 == 0) {
      fake->fail_status = 7;
      EXPECT_EQ(end_of(post(8, note)), Code::permission);
    } else {
      fake->rma_tries = 0;
      for (std::uint64_t i = round % 8; i < 2000; ++i) fake->again_at.push_back(i);
      const Ticket ticket = post(12, note);
      a->poll();
      ASSERT_TRUE(a->link->cancel(ticket).ok());
      fake->again_at.clear();
      EXPECT_EQ(end_of(ticket), Code::aborted);
    }
    settle();
  }
  EXPECT_EQ(notes(*b), 0U) << "a note of a batch that failed";
  for (int i = 0; i < 20; ++i) move(16);
  EXPECT_EQ(counted(*b), 20.0);
}

// Without immediates, or where each would take a receive, notes wait for their writes.
TEST_F(FabricCounts, OnlyWhereImmediatesAreFree) {
  for (const int way : {0, 1, 2, 3}) {
    FakeOptions options = calm();
    options.cq_data_bytes = way == 0 ? 0 : 4;
    options.unsolicited = way != 1;
    adjust = [&](FabricConfig& changed) {
      if (way == 2) changed.immediates = 0;
      if (way == 3) changed.counted_ops = 0;
    };
    open(options);
    settle();
    move(4);
    EXPECT_EQ(counted(*b), 0.0);
    EXPECT_EQ(fake->immediates, 0U);
  }
}

// A peer that lies about its counts harms its own notes.
TEST_F(FabricCounts, LiesAreHarmless) {
  open(calm());
  settle();
  const PeerToken token = decode_offer(b->link->offer(b->peer).value(), 256)->token;
  const auto say = [&](MessageType type, std::uint64_t value, bool with_note) {
    const PeerMessage message =
        message_to(token, type, value,
                   with_note ? std::span<const std::byte>(note) : std::span<const std::byte>());
    const auto bytes = std::as_bytes(std::span(&message, 1));
    fake->inject({bytes.begin(), bytes.end()});
    run([] { return false; }, 5);
  };
  for (const std::uint64_t value :
       {std::uint64_t{1}, std::uint64_t{0x1FF}, UINT64_MAX, std::uint64_t{17} << kSlotBits,
        (std::uint64_t{1} << kSlotBits) | kCountSlots}) {
    say(MessageType::note, value, true);
    say(MessageType::uncount, value, false);
  }
  say(MessageType::grant, UINT64_MAX, false);
  say(MessageType::grant, kNoChannel, false);
  say(MessageType::freed, UINT64_MAX, false);
  EXPECT_EQ(notes(*b), 0U);
  EXPECT_GE(b->metric("kvlane_libfabric_strangers_total malformed"), 5.0);
  EXPECT_EQ(end_of(post(4)), Code::ok);
}

}  // namespace
}  // namespace kvl::libfabric
