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

}  // namespace
}  // namespace kvl::test
