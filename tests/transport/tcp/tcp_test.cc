// tcp by itself: what the conformance suite cannot see.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/transport/tcp/pair.h"

namespace kvl::test {
namespace {

struct Shape {
  std::size_t pages, page_bytes;
};

class TcpMoves : public ::testing::TestWithParam<Shape> {};

// Pages in random order both ways; everything else stays as it was.
TEST_P(TcpMoves, ScatteredPagesArrive) {
  const auto [pages, page_bytes] = GetParam();
  for (const Direction direction : {Direction::write, Direction::read}) {
    Pair pair;
    const std::size_t bytes = pages * 2 * page_bytes;
    std::vector<std::byte> here = random_bytes(bytes, 1), there = random_bytes(bytes, 2);
    const std::vector<std::byte> here_before = here, there_before = there;
    pair.share(memory_of(here), memory_of(there, Access::remote_all));
    std::vector<std::size_t> from(pages * 2), to(pages * 2);
    std::iota(from.begin(), from.end(), 0);
    to = from;
    std::mt19937_64 random(3);
    std::shuffle(from.begin(), from.end(), random);
    std::shuffle(to.begin(), to.end(), random);
    std::vector<PageOp> ops(pages);
    for (std::size_t i = 0; i < pages; ++i) {
      ops[i].local_offset = from[i] * page_bytes;
      ops[i].remote_offset = to[i] * page_bytes;
      ops[i].bytes = static_cast<std::uint32_t>(page_bytes);
    }
    ASSERT_TRUE(pair.a.link->post(pair.batch(direction, ops, 7)).ok());
    const Event event = pair.await(pair.a, Event::Kind::batch);
    EXPECT_EQ(event.code, Code::ok);
    EXPECT_EQ(event.bytes_done, pages * page_bytes);
    EXPECT_EQ(event.ticket, Ticket{7});
    std::vector<std::byte> expected_here = here_before, expected_there = there_before;
    for (const PageOp& op : ops) {
      if (direction == Direction::write) {
        std::memcpy(&expected_there[op.remote_offset], &here_before[op.local_offset], page_bytes);
      } else {
        std::memcpy(&expected_here[op.local_offset], &there_before[op.remote_offset], page_bytes);
      }
    }
    EXPECT_TRUE(here == expected_here);
    EXPECT_TRUE(there == expected_there);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, TcpMoves,
                         ::testing::Values(Shape{1, 1}, Shape{1, 4096}, Shape{3, 100},
                                           Shape{1024, 4096}, Shape{5000, 64}, Shape{100, 65536},
                                           Shape{3, 9 << 20}, Shape{1500, 3000}));

// Many batches of many runs at once, both ways and from both sides: every byte against a naive
// copy.
TEST(TcpBatches, ManyAtOnce) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    constexpr std::size_t kParts = 16, kPart = 128 << 10;
    Pair pair;
    std::vector<std::byte> here = random_bytes(kParts * kPart, 1);
    std::vector<std::byte> there = random_bytes(kParts * kPart, 2);
    std::vector<std::byte> wanted_here = here, wanted_there = there;
    pair.share(memory_of(here), memory_of(there, Access::remote_all));
    std::vector<std::vector<PageOp>> batches(kParts);
    for (std::size_t part = 0; part < kParts; ++part) {
      std::vector<PageOp>& ops = batches[part];
      ops.resize(random() % (part % 2 == 0 ? 400 : 3) + 1);
      const std::size_t slot = kPart / ops.size();
      const bool write = random() % 2 == 0;
      for (std::size_t i = 0; i < ops.size(); ++i) {
        PageOp& op = ops[i];
        op.count = static_cast<std::uint32_t>(random() % 20 + 1);
        op.bytes = static_cast<std::uint32_t>(random() % (slot / op.count) + 1);
        op.local_stride = op.bytes + random() % (slot / op.count - op.bytes + 1);
        op.remote_stride = op.bytes + random() % (slot / op.count - op.bytes + 1);
        // A single piece has no stride, whatever the field says.
        if (op.count == 1) op.local_stride = op.remote_stride = random();
        op.local_offset = part * kPart + i * slot;
        op.remote_offset = part * kPart + (ops.size() - 1 - i) * slot;
        for (std::size_t piece = 0; piece < op.count; ++piece) {
          std::byte* const l = &wanted_here[op.local_offset + piece * op.local_stride];
          std::byte* const r = &wanted_there[op.remote_offset + piece * op.remote_stride];
          std::memcpy(write ? r : l, write ? l : r, op.bytes);
        }
      }
      const Direction direction = write ? Direction::write : Direction::read;
      ASSERT_TRUE(pair.a.link->post(pair.batch(direction, ops, part)).ok());
    }
    for (std::size_t part = 0; part < kParts; ++part) {
      EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::ok);
    }
    EXPECT_TRUE(here == wanted_here);
    EXPECT_TRUE(there == wanted_there);
  }
}

}  // namespace
}  // namespace kvl::test
