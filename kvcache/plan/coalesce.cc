#include "kvcache/plan/coalesce.h"

#include <algorithm>
#include <limits>
#include <span>
#include <utility>

namespace kvl {
namespace {

constexpr std::uint64_t kCountMax = std::numeric_limits<std::uint32_t>::max();

void remove(PieceBox& box, std::size_t i) {
  std::copy(box.dimensions.begin() + static_cast<std::ptrdiff_t>(i) + 1,
            box.dimensions.begin() + static_cast<std::ptrdiff_t>(box.used),
            box.dimensions.begin() + static_cast<std::ptrdiff_t>(i));
  --box.used;
}

// A dimension whose pieces touch on both sides makes the piece longer.
bool fuse_into_piece(PieceBox& box) {
  for (std::size_t i = 0; i < box.used; ++i) {
    const Dimension& d = box.dimensions[i];
    if (d.src_step == box.bytes && d.dst_step == box.bytes &&
        box.bytes * d.count <= PieceBox::kPieceBytesMax) {
      box.bytes *= d.count;
      remove(box, i);
      return true;
    }
  }
  return false;
}

// Two dimensions of which b goes on where a ends are one.
bool fuse_pair(PieceBox& box) {
  for (std::size_t i = 0; i < box.used; ++i) {
    for (std::size_t j = 0; j < box.used; ++j) {
      Dimension& a = box.dimensions[i];
      const Dimension& b = box.dimensions[j];
      if (i != j && b.src_step == a.src_step * a.count && b.dst_step == a.dst_step * a.count &&
          a.count * b.count <= kCountMax) {
        a.count *= b.count;
        remove(box, j);
        return true;
      }
    }
  }
  return false;
}

}  // namespace

void fuse(PieceBox& box) {
  while (fuse_into_piece(box) || fuse_pair(box)) {
  }
  // The op's stride comes first: the longest dimension leaves the fewest ops.
  const std::span rest(box.dimensions.data(), box.used);
  const auto longest =
      std::max_element(rest.begin(), rest.end(),
                       [](const Dimension& a, const Dimension& b) { return a.count < b.count; });
  if (longest != rest.end()) std::swap(rest.front(), *longest);
}

std::uint64_t op_count(const PieceBox& box) {
  std::uint64_t ops = 1;
  for (std::size_t i = 1; i < box.used; ++i) ops *= box.dimensions[i].count;
  return ops;
}

void append_ops(const PieceBox& box, std::uint64_t src, std::uint64_t dst,
                std::vector<PageOp>& ops) {
  PageOp op;
  op.bytes = static_cast<std::uint32_t>(box.bytes);
  op.local_offset = src;
  op.remote_offset = dst;
  if (box.used > 0) {
    op.count = static_cast<std::uint32_t>(box.dimensions[0].count);
    op.local_stride = box.dimensions[0].src_step;
    op.remote_stride = box.dimensions[0].dst_step;
  }
  std::array<std::uint64_t, PieceBox::kDimensionsMax> at{};
  for (;;) {
    ops.push_back(op);
    std::size_t i = 1;
    for (; i < box.used; ++i) {
      const Dimension& d = box.dimensions[i];
      op.local_offset += d.src_step;
      op.remote_offset += d.dst_step;
      if (++at[i] < d.count) break;
      op.local_offset -= d.src_step * d.count;
      op.remote_offset -= d.dst_step * d.count;
      at[i] = 0;
    }
    if (i >= box.used) return;
  }
}

}  // namespace kvl
