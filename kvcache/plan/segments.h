// The first half of a plan: page ids of both sides and a token range become runs of tokens that are
// unbroken on both sides. The same for every tensor of a group, so made once per group.
#pragma once

#include <cstdint>
#include <vector>

#include "kvl/transfer_plan.h"

namespace kvl {

// `count` stretches of `tokens` tokens each, `src_step` and `dst_step` bytes apart. Offsets are
// from the start of a tensor and are those of its first head held there.
struct SegmentRun {
  std::uint64_t src = 0;
  std::uint64_t dst = 0;
  std::uint64_t tokens = 0;
  std::uint64_t count = 1;
  std::uint64_t src_step = 0;
  std::uint64_t dst_step = 0;
};

// Checks the page lists as plan_transfer() documents and replaces `out`. `ids` is scratch.
Status make_segments(const LayoutGroup& src, const LayoutGroup& dst, const GroupPages& pages,
                     std::uint64_t first_token, std::uint64_t end_token,
                     std::vector<SegmentRun>& out, std::vector<std::uint32_t>& ids);

}  // namespace kvl
