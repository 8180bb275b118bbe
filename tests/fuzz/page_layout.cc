// Two layouts and page lists from anywhere: what decodes is consistent, and a plan between them
// stays in its regions.
#include "kvl/page_layout.h"

#include <algorithm>

#include "kvl/transfer_plan.h"
#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {
namespace {

std::uint64_t end_of(std::uint64_t offset, const PageOp& op, std::uint64_t stride) {
  return offset + stride * (op.count - 1) + op.bytes;
}

void check_layout(const PageLayout& layout, Bytes bytes) {
  require(std::ranges::equal(layout.encode(), bytes), "a layout encodes to itself");
  for (std::size_t g = 0; g < layout.groups().size(); ++g) {
    const LayoutGroup& group = layout.groups()[g];
    if (group.heads.count == 0 || group.layers.count == 0 || group.page_count == 0) continue;
    for (const KvPart part : {KvPart::k, KvPart::v}) {
      const auto last = layout.address(g, group.layers.end() - 1, part, group.page_count - 1,
                                       group.page_tokens - 1, group.heads.end() - 1);
      if (!last.ok()) continue;
      require(last->offset + group.head_bytes() <= layout.region_bytes(last->region),
              "the last element of a tensor is in its region");
    }
    require(
        !layout.address(g, group.layers.first, KvPart::k, group.page_count, 0, group.heads.first)
             .ok(),
        "a page beyond the last has no address");
  }
}

// Page ids: some from the input, most in range, so that plans come about.
std::vector<std::uint32_t> pages_of(Input& input, std::uint32_t page_count) {
  std::vector<std::uint32_t> ids(input.number<std::uint8_t>() % 9);
  for (std::uint32_t& id : ids) {
    const auto raw = input.number<std::uint16_t>();
    id = page_count == 0 || raw % 16 == 0 ? raw : raw % page_count;
  }
  return ids;
}

void check_plan(const PageLayout& src, const PageLayout& dst, Input& input) {
  std::vector<std::vector<std::uint32_t>> ids;
  std::vector<GroupPages> groups;
  for (std::size_t g = 0; g < src.groups().size(); ++g) {
    ids.push_back(pages_of(input, src.groups()[g].page_count));
    ids.push_back(g < dst.groups().size() ? pages_of(input, dst.groups()[g].page_count)
                                          : std::vector<std::uint32_t>{});
  }
  for (std::size_t i = 0; i < ids.size(); i += 2) groups.push_back({ids[i], ids[i + 1], 0, 0});
  PlanRequest request{.groups = groups, .ops_max = 1 << 14};
  request.tokens = input.number<std::uint16_t>();
  request.skip_tokens = input.number<std::uint8_t>();
  request.by_layer = input.number<std::uint8_t>() % 2 == 0;
  TransferPlan plan;
  if (!plan_transfer(src, dst, request, plan).ok()) {
    require(plan.ops.empty(), "a refused plan is empty");
    return;
  }
  require(plan.ops.size() <= request.ops_max, "a plan is as long as it may be");
  std::uint64_t bytes = 0;
  for (const PageOp& op : plan.ops) {
    require(op.bytes > 0 && op.count > 0, "an op moves something");
    require(end_of(op.local_offset, op, op.local_stride) <= src.region_bytes(op.local_region),
            "an op reads inside the source's regions");
    require(end_of(op.remote_offset, op, op.remote_stride) <= dst.region_bytes(op.remote_region),
            "an op writes inside the destination's regions");
    bytes += op.total_bytes();
  }
  require(bytes == plan.bytes, "a plan knows its bytes");
}

}  // namespace

void fuzz_page_layout(Bytes input) {
  Input parts(input);
  const Bytes first = parts.piece(), second = parts.piece();
  const auto src = PageLayout::decode(first);
  const auto dst = PageLayout::decode(second);
  if (src.ok()) check_layout(*src, first);
  if (dst.ok()) check_layout(*dst, second);
  if (src.ok() && dst.ok()) check_plan(*src, *dst, parts);
}

Seeds seeds_page_layout() {
  const ModelGeometry model{.layers = 2, .kv_heads = 4, .head_dim = 8, .dtype = Dtype::f16};
  const ModelGeometry latent{.layers = 3, .kv_heads = 1, .head_dim = 16, .mla = true};
  const auto blob = [](const ModelGeometry& geometry, const ParallelSlice& slice,
                       const LayoutOptions& options) {
    return piece(make_layout(geometry, slice, options)->encode());
  };
  const std::vector<std::byte> tail = seed(
      "\x02\x01\0\x02\0\x02\x03\0\x01\0\x02\x01\0\x02\0\x02\x03\0\x01\0\x07\0\0\0\0\0\0\0\0\0");
  const LayoutOptions layer{.page_tokens = 4, .page_count = 8};
  const LayoutOptions page{
      .page_tokens = 8, .page_count = 8, .order = PageOrder::page_first, .kv_joined = true};
  const LayoutOptions split{.page_tokens = 2,
                            .page_count = 9,
                            .token_order = TokenOrder::hnd,
                            .regions = RegionUse::per_tensor};
  return {join({blob(model, {}, layer), blob(model, {}, layer), tail}),
          join({blob(model, {2, 1, 1, 0}, layer), blob(model, {4, 2, 1, 0}, page), tail}),
          join({blob(model, {1, 0, 2, 1}, page), blob(model, {1, 0, 1, 0}, split), tail}),
          join({blob(latent, {}, layer), blob(latent, {2, 1, 1, 0}, page), tail})};
}

}  // namespace kvl::fuzz
