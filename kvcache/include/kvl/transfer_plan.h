// TransferPlan: from two layouts and page ids to the strided runs that move a token range. A pure
// function: it reads nothing else, so both sides of a movement, given the same input, compute the
// same runs.
//
// A plan is made per pair of ranks. rank_pairs() names the pairs that move something; over all of
// them, every byte of the token range is written exactly once on the receiving side, also where
// slices, page sizes and orders inside pages differ. What is replicated on the sending side (an MLA
// latent, a KV head when tp_size exceeds kv_heads) is sent to each receiver by exactly one rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "kvl/page_layout.h"
#include "kvl/page_op.h"
#include "kvl/status.h"

namespace kvl {

// Page ids of one request in one group. Entry i of a list holds the tokens from
// first_token + i * page_tokens on. first_token lets a side list only the pages that matter (decode
// already has a prefix); it is a multiple of that side's page_tokens. Pages outside the token range
// of the request may be listed and are not looked at.
struct GroupPages {
  std::span<const std::uint32_t> src;
  std::span<const std::uint32_t> dst;
  std::uint64_t src_first_token = 0;
  std::uint64_t dst_first_token = 0;
};

struct PlanRequest {
  std::span<const GroupPages> groups;  // one per group of the layouts
  // Tokens [skip_tokens, tokens) of the request move.
  std::uint64_t skip_tokens = 0;
  std::uint64_t tokens = 0;
  // Only these layers, of those that both sides hold.
  Range layers{0, std::numeric_limits<std::uint32_t>::max()};
  // false: runs may span layers (fewer of them where both sides are page-first), and the whole plan
  // is one entry of layer_begin.
  bool by_layer = true;
  // true: local and remote of every op are exchanged, for the receiver that reads.
  bool swap_sides = false;
  // More ops than this are refused with exhausted, before memory is taken for them.
  std::uint64_t ops_max = std::uint64_t{1} << 24;
};

// local is the source, remote the destination, unless swap_sides. Regions are indices as in the
// layouts. Pieces of all ops are disjoint on the destination.
//
// Reusable: plan_transfer() into the same object again takes no memory once it has grown.
struct TransferPlan {
  std::vector<PageOp> ops;
  // Ops of layer first_layer + i are [layer_begin[i], layer_begin[i + 1]): one entry more than
  // layers, none when nothing moves.
  std::uint32_t first_layer = 0;
  std::vector<std::uint32_t> layer_begin;
  std::uint64_t bytes = 0;

  std::uint32_t layer_count() const {
    return layer_begin.empty() ? 0 : static_cast<std::uint32_t>(layer_begin.size() - 1);
  }
  // Index i as in layer_begin.
  std::span<const PageOp> layer_ops(std::uint32_t i) const {
    return std::span(ops).subspan(layer_begin[i], layer_begin[i + 1] - layer_begin[i]);
  }

  struct Scratch;  // what plan_transfer() keeps between calls
  struct ScratchDelete {
    void operator()(Scratch* kept) const;
  };
  std::unique_ptr<Scratch, ScratchDelete> scratch;
};

// Replaces what `out` held. An empty plan is ok: this pair has nothing to move.
//   invalid_argument  layouts not compatible(), an empty or reversed token range, a list too short
//                     for it or not page-aligned, a page id out of range, a destination page named
//                     twice
//   exhausted         more than ops_max ops
// After an error `out` is empty. Thread: any, one at a time per `out`.
Status plan_transfer(const PageLayout& src, const PageLayout& dst, const PlanRequest& request,
                     TransferPlan& out);

// Whether src is the rank that sends to dst what both hold of this many heads: true for exactly one
// source rank per receiver and head. Pipeline stages are not looked at. Receivers are spread
// evenly over replicas. Both slices must be valid for kv_heads (1 for MLA).
bool sends(std::uint32_t kv_heads, const ParallelSlice& src, const ParallelSlice& dst);

// Whether anything moves between these two ranks.
bool moves(const PageLayout& src, const PageLayout& dst);

// Ranks are numbered pp_rank * tp_size + tp_rank.
constexpr std::uint32_t flat_rank(const ParallelSlice& slice) {
  return slice.pp_rank * slice.tp_size + slice.tp_rank;
}
constexpr ParallelSlice slice_at(std::uint32_t tp_size, std::uint32_t pp_size,
                                 std::uint32_t flat_rank) {
  return {tp_size, flat_rank % tp_size, pp_size, flat_rank / tp_size};
}

struct RankPair {
  std::uint32_t src = 0;  // flat ranks
  std::uint32_t dst = 0;

  friend bool operator==(const RankPair&, const RankPair&) = default;
};
struct ParallelSizes {
  std::uint32_t tp_size = 1;
  std::uint32_t pp_size = 1;
};
// The pairs that move something, ordered by src, then dst, when layers are cut as layers_of() does.
// invalid_argument when a side cannot hold the model (heads_of).
Result<std::vector<RankPair>> rank_pairs(const ModelGeometry& geometry, const ParallelSizes& src,
                                         const ParallelSizes& dst);

}  // namespace kvl
