// Cutting runs into pieces: every byte once, in order, within the limits.
#include "transport/core/stripe.h"

#include <gtest/gtest.h>

#include <random>

namespace kvl {
namespace {

// Walks pieces in order and says where each op's bytes end up: [op] -> bytes covered so far.
void expect_exact_cover(const std::vector<PageOp>& ops, const std::vector<PieceRange>& pieces) {
  std::size_t op = 0;
  std::uint64_t at = 0;
  for (const PieceRange& piece : pieces) {
    ASSERT_EQ(piece.op_begin, op);
    ASSERT_EQ(piece.begin, at);
    ASSERT_GT(piece.op_count, 0U);
    std::uint64_t bytes = 0;
    for (std::uint32_t i = 0; i < piece.op_count; ++i) {
      const bool last = i + 1 == piece.op_count;
      const std::uint64_t end =
          last && piece.end != 0 ? piece.end : ops[piece.op_begin + i].total_bytes();
      const std::uint64_t begin = i == 0 ? piece.begin : 0;
      ASSERT_LT(begin, end);
      bytes += end - begin;
      if (last && piece.end != 0) {
        op = piece.op_begin + i;
        at = piece.end;
      } else {
        op = piece.op_begin + i + 1;
        at = 0;
      }
    }
    ASSERT_EQ(bytes, piece.bytes);
  }
  EXPECT_EQ(op, ops.size());
  EXPECT_EQ(at, 0U);
}

TEST(Stripe, CoversEveryByteOnceWithinTheLimits) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    StripeLimits limits{1 + random() % 10000, static_cast<std::uint32_t>(1 + random() % 40)};
    std::vector<PageOp> ops(1 + random() % 60);
    for (PageOp& op : ops) {
      op.bytes = static_cast<std::uint32_t>(1 + random() % (random() % 8 == 0 ? 50000 : 500));
      op.count = static_cast<std::uint32_t>(1 + random() % 20);
    }
    std::vector<PieceRange> pieces;
    cut(ops, limits, pieces);
    ASSERT_NO_FATAL_FAILURE(expect_exact_cover(ops, pieces)) << "round " << round;
    for (const PieceRange& piece : pieces) {
      EXPECT_LE(piece.op_count, limits.piece_runs);
      EXPECT_LE(piece.bytes, limits.piece_bytes + limits.piece_bytes / 2 + 1);
    }
  }
}

TEST(Stripe, PagesThatFitArePiecesOfOneRail) {
  // Strided pages of 3000 bytes, a contiguous run, pages that are larger than a piece.
  std::vector<PageOp> ops(3);
  ops[0].bytes = 3000, ops[0].count = 10;
  ops[1].bytes = 9000, ops[1].count = 1;
  ops[2].bytes = 20000, ops[2].count = 2;
  std::vector<PieceRange> pieces;
  cut(ops, {8192, 40}, pieces);
  ASSERT_NO_FATAL_FAILURE(expect_exact_cover(ops, pieces));
  bool cut_large = false;
  for (const PieceRange& piece : pieces) {
    EXPECT_TRUE(piece.op_begin != 0 || piece.begin % 3000 == 0);
    EXPECT_TRUE(piece.op_begin + piece.op_count != 1 || piece.end % 3000 == 0);
    cut_large |= piece.op_begin == 2 && piece.begin % 20000 != 0;
  }
  EXPECT_TRUE(cut_large);
}

TEST(Stripe, NothingMakesNoPiece) {
  std::vector<PieceRange> pieces;
  cut({}, {}, pieces);
  EXPECT_TRUE(pieces.empty());
}

}  // namespace
}  // namespace kvl
