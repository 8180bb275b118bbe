// Who sends to whom: which pairs of ranks share heads and layers, and which of several replicas of
// a head is the one that sends it.
#include <algorithm>

#include "kvl/transfer_plan.h"

namespace kvl {

bool sends(std::uint32_t kv_heads, const ParallelSlice& src, const ParallelSlice& dst) {
  const Result<Range> src_heads = heads_of(kv_heads, src.tp_size, src.tp_rank);
  const Result<Range> dst_heads = heads_of(kv_heads, dst.tp_size, dst.tp_rank);
  if (!src_heads || !dst_heads || intersect(*src_heads, *dst_heads).count == 0) return false;
  if (src.tp_size <= kv_heads) return true;
  // Replicas of a head are neighbouring ranks on both sides. Receiver j of n gets it from sender
  // j * m / n of m: neighbours serve neighbours, and no sender serves two while another idles.
  const std::uint32_t senders = src.tp_size / kv_heads;
  const std::uint32_t receivers = dst.tp_size > kv_heads ? dst.tp_size / kv_heads : 1;
  const std::uint32_t receiver = dst.tp_rank % receivers;
  return src.tp_rank % senders == (receivers == 1 ? 0 : receiver * senders / receivers);
}

bool moves(const PageLayout& src, const PageLayout& dst) {
  const std::size_t groups = std::min(src.groups().size(), dst.groups().size());
  for (std::size_t i = 0; i < groups; ++i) {
    const LayoutGroup& a = src.groups()[i];
    const LayoutGroup& b = dst.groups()[i];
    if (intersect(a.layers, b.layers).count > 0 && a.kv_heads == b.kv_heads &&
        sends(a.kv_heads, src.slice(), dst.slice())) {
      return true;
    }
  }
  return false;
}

Result<std::vector<RankPair>> rank_pairs(const ModelGeometry& geometry, const ParallelSizes& src,
                                         const ParallelSizes& dst) {
  for (const ParallelSizes& sizes : {src, dst}) {
    KVL_TRY(validate({sizes.tp_size, 0, sizes.pp_size, 0}));
    if (std::uint64_t{sizes.tp_size} * sizes.pp_size > PageLayout::kParallelMax) {
      return Status(Code::invalid_argument, "rank_pairs: more than 4096 ranks on a side");
    }
    const Result<Range> heads = heads_of(geometry.kv_heads, sizes.tp_size, 0);
    if (!heads) return heads.status();
  }
  std::vector<RankPair> pairs;
  const std::uint32_t src_ranks = src.tp_size * src.pp_size;
  const std::uint32_t dst_ranks = dst.tp_size * dst.pp_size;
  for (std::uint32_t s = 0; s < src_ranks; ++s) {
    const ParallelSlice from = slice_at(src.tp_size, src.pp_size, s);
    const Range held = layers_of(geometry.layers, from.pp_size, from.pp_rank);
    for (std::uint32_t d = 0; d < dst_ranks; ++d) {
      const ParallelSlice to = slice_at(dst.tp_size, dst.pp_size, d);
      const Range wanted = layers_of(geometry.layers, to.pp_size, to.pp_rank);
      if (intersect(held, wanted).count > 0 && sends(geometry.kv_heads, from, to)) {
        pairs.push_back({s, d});
      }
    }
  }
  return pairs;
}

}  // namespace kvl
