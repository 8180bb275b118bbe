// The second half of a plan: a box of pieces (heads × tokens × pages × K/V × layers) as few strided
// runs. A dimension whose neighbours touch on both sides disappears into the piece; two dimensions
// of which one continues the other become one; the longest of the rest is the op's stride.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvl/page_op.h"

namespace kvl {

struct Dimension {
  std::uint64_t count = 1;
  std::uint64_t src_step = 0;
  std::uint64_t dst_step = 0;
};

// Pieces of `bytes`, one for each point of the box. Offsets and steps in bytes.
struct PieceBox {
  static constexpr std::size_t kDimensionsMax = 5;
  // Of one piece after fusing; an op's `bytes` has 32 bits.
  static constexpr std::uint64_t kPieceBytesMax = std::uint64_t{1} << 30;

  std::uint64_t bytes = 0;
  std::array<Dimension, kDimensionsMax> dimensions{};
  std::size_t used = 0;

  void add(const Dimension& dimension) {
    if (dimension.count > 1) dimensions[used++] = dimension;
  }
};

// Fewest dimensions for the same set of (source byte, destination byte) pairs.
void fuse(PieceBox& box);

// Ops that a fused box becomes, and the ops themselves, appended with local = source and regions 0.
std::uint64_t op_count(const PieceBox& box);
void append_ops(const PieceBox& box, std::uint64_t src, std::uint64_t dst,
                std::vector<PageOp>& ops);

}  // namespace kvl
