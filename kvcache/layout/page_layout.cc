// PageLayout: checks that make every later address computation safe, and the address itself.
#include "kvl/page_layout.h"

#include <algorithm>

namespace kvl {
namespace {

constexpr std::uint32_t kDimMax = 1U << 20;
constexpr std::uint32_t kPageTokensMax = 1U << 20;
constexpr std::uint32_t kHeadsMax = 1U << 16;

Status check_shape(const LayoutGroup& g, std::uint32_t model_layers) {
  if (g.layers.count == 0 || g.layers.first >= model_layers ||
      g.layers.count > model_layers - g.layers.first) {
    return {Code::invalid_argument, "layout group: layer range outside the model"};
  }
  if (g.kv_heads == 0 || g.kv_heads > kHeadsMax) {
    return {Code::invalid_argument, "layout group: kv_heads out of range"};
  }
  if (g.mla && g.kv_heads != 1) {
    return {Code::invalid_argument, "layout group: an MLA latent has kv_heads 1"};
  }
  if (g.head_dim == 0 || g.head_dim > kDimMax) {
    return {Code::invalid_argument, "layout group: head_dim out of range"};
  }
  if (dtype_bytes(g.dtype) == 0) return {Code::invalid_argument, "layout group: unknown dtype"};
  if (g.token_order != TokenOrder::nhd && g.token_order != TokenOrder::hnd) {
    return {Code::invalid_argument, "layout group: unknown token order"};
  }
  if (g.page_tokens == 0 || g.page_tokens > kPageTokensMax) {
    return {Code::invalid_argument, "layout group: page_tokens out of range"};
  }
  if (g.page_count == 0) return {Code::invalid_argument, "layout group: no pages"};
  if (g.k.size() != g.layers.count || g.v.size() != (g.mla ? 0 : g.layers.count)) {
    return {Code::invalid_argument, "layout group: one place per layer and tensor is needed"};
  }
  return {};
}

// Whether two tensors of one group share a byte. Both are page_count pieces of `bytes`, one every
// `stride`; piece p of a meets piece q of b where their distance in strides is p - q.
bool tensors_overlap(const TensorPlace& a, const TensorPlace& b, std::uint64_t bytes,
                     std::uint64_t stride, std::uint64_t pages) {
  if (a.region != b.region) return false;
  const std::uint64_t distance = std::max(a.offset, b.offset) - std::min(a.offset, b.offset);
  const std::uint64_t strides = distance / stride;
  const std::uint64_t rest = distance % stride;
  return (rest < bytes && strides < pages) || (stride - rest < bytes && strides + 1 < pages);
}

// Sets region_bytes; needs g.heads.
Status check_places(const LayoutGroup& g, std::vector<std::uint64_t>& region_bytes) {
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(g.head_bytes() * g.heads.count, g.page_tokens, &bytes) ||
      bytes > PageLayout::kTensorPageBytesMax) {
    return {Code::invalid_argument, "layout group: a page of one tensor exceeds 1 GiB"};
  }
  if (g.page_stride < bytes) {
    return {Code::invalid_argument, "layout group: page_stride below the bytes of a page"};
  }
  std::uint64_t extent = 0;
  if (__builtin_mul_overflow(g.page_stride, std::uint64_t{g.page_count} - 1, &extent) ||
      extent > PageLayout::kRegionBytesMax) {
    return {Code::invalid_argument, "layout group: pages exceed the region limit"};
  }
  extent += bytes;

  std::vector<TensorPlace> places = g.k;
  places.insert(places.end(), g.v.begin(), g.v.end());
  for (std::size_t i = 0; i < places.size(); ++i) {
    const TensorPlace& place = places[i];
    if (place.region >= PageLayout::kRegionsMax) {
      return {Code::invalid_argument, "layout group: region index out of range"};
    }
    if (place.offset > PageLayout::kRegionBytesMax ||
        place.offset + extent > PageLayout::kRegionBytesMax) {
      return {Code::invalid_argument, "layout group: pages exceed the region limit"};
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (tensors_overlap(place, places[j], bytes, g.page_stride, g.page_count)) {
        return {Code::invalid_argument, "layout group: two tensors overlap"};
      }
    }
    if (place.region >= region_bytes.size()) region_bytes.resize(place.region + 1);
    region_bytes[place.region] = std::max(region_bytes[place.region], place.offset + extent);
  }
  return {};
}

}  // namespace

Result<PageLayout> PageLayout::create(std::uint32_t model_layers, const ParallelSlice& slice,
                                      std::vector<LayoutGroup> groups) {
  if (model_layers == 0 || model_layers > kLayersMax) {
    return Status(Code::invalid_argument, "layout: model_layers out of range");
  }
  KVL_TRY(validate(slice));
  if (groups.empty() || groups.size() > kGroupsMax) {
    return Status(Code::invalid_argument, "layout: needs 1 to 64 groups");
  }
  PageLayout layout;
  for (LayoutGroup& group : groups) {
    KVL_TRY(check_shape(group, model_layers));
    const Result<Range> heads = heads_of(group.kv_heads, slice.tp_size, slice.tp_rank);
    if (!heads) return heads.status();
    group.heads = *heads;
    KVL_TRY(check_places(group, layout.region_bytes_));
  }
  layout.model_layers_ = model_layers;
  layout.slice_ = slice;
  layout.groups_ = std::move(groups);
  return layout;
}

std::uint64_t PageLayout::page_bytes(std::size_t group) const {
  if (group >= groups_.size()) return 0;
  const LayoutGroup& g = groups_[group];
  return g.tensor_page_bytes() * (g.k.size() + g.v.size());
}

Result<PageAddress> PageLayout::address(std::size_t group, std::uint32_t layer, KvPart part,
                                        std::uint32_t page, std::uint32_t token,
                                        std::uint32_t head) const {
  if (group >= groups_.size()) return Status(Code::invalid_argument, "address: no such group");
  const LayoutGroup& g = groups_[group];
  if (!g.layers.contains(layer)) {
    return Status(Code::invalid_argument, "address: layer not held here");
  }
  if (!g.heads.contains(head)) return Status(Code::invalid_argument, "address: head not held here");
  if (page >= g.page_count || token >= g.page_tokens) {
    return Status(Code::invalid_argument, "address: page or token out of range");
  }
  const std::vector<TensorPlace>& tensors = part == KvPart::k ? g.k : g.v;
  if (tensors.empty()) return Status(Code::invalid_argument, "address: an MLA latent has no V");
  const TensorPlace& place = tensors[layer - g.layers.first];
  return PageAddress{place.region, place.offset + page * g.page_stride + token * g.token_stride() +
                                       (head - g.heads.first) * g.head_stride()};
}

Status compatible(const PageLayout& src, const PageLayout& dst) {
  if (src.model_layers() != dst.model_layers()) {
    return {Code::invalid_argument, "layouts differ: number of model layers"};
  }
  if (src.groups().size() != dst.groups().size()) {
    return {Code::invalid_argument, "layouts differ: number of groups"};
  }
  for (std::size_t i = 0; i < src.groups().size(); ++i) {
    const LayoutGroup& a = src.groups()[i];
    const LayoutGroup& b = dst.groups()[i];
    if (a.mla != b.mla) return {Code::invalid_argument, "layouts differ: MLA latent against heads"};
    if (a.kv_heads != b.kv_heads) return {Code::invalid_argument, "layouts differ: kv_heads"};
    if (a.head_dim != b.head_dim) return {Code::invalid_argument, "layouts differ: head_dim"};
    if (a.dtype != b.dtype) return {Code::invalid_argument, "layouts differ: dtype"};
  }
  return {};
}

}  // namespace kvl
