// The usual layouts from a model geometry, a slice and a few options.
#include "kvl/page_layout.h"

namespace kvl {
namespace {

Status check_options(const ModelGeometry& geometry, const LayoutOptions& options) {
  if (options.order == PageOrder::page_first && options.regions != RegionUse::one) {
    return {Code::invalid_argument, "page_first needs one region"};
  }
  if (options.regions == RegionUse::per_tensor && options.kv_joined && !geometry.mla) {
    return {Code::invalid_argument, "a region per tensor needs K and V split"};
  }
  if (options.page_tokens == 0 || options.page_count == 0) {
    return {Code::invalid_argument, "layout options: page_tokens and page_count are required"};
  }
  // Keeps every product below 2^64 before create() makes the precise checks.
  if (geometry.layers > PageLayout::kLayersMax || geometry.kv_heads > (1U << 16) ||
      geometry.head_dim > (1U << 20) || options.page_tokens > (1U << 20)) {
    return {Code::invalid_argument, "layout options: geometry out of range"};
  }
  return {};
}

// Places of one tensor in units of a tensor page, so that the arithmetic below is about order only.
struct Order {
  std::uint64_t layer;  // from a layer to the next
  std::uint64_t v;      // from K to V
  std::uint64_t page;   // from a page to the next
};

Order order_of(const LayoutOptions& options, std::uint64_t layers, std::uint64_t parts) {
  const std::uint64_t pages = options.page_count;
  const bool joined = options.kv_joined || parts == 1;
  if (options.order == PageOrder::page_first) {
    return joined ? Order{.layer = parts, .v = 1, .page = layers * parts}
                  : Order{.layer = 1, .v = layers * pages, .page = layers};
  }
  return joined ? Order{.layer = parts * pages, .v = 1, .page = parts}
                : Order{.layer = parts * pages, .v = pages, .page = 1};
}

}  // namespace

Result<PageLayout> make_layout(const ModelGeometry& geometry, const ParallelSlice& slice,
                               const LayoutOptions& options) {
  KVL_TRY(check_options(geometry, options));
  KVL_TRY(validate(slice));
  const Result<Range> heads = heads_of(geometry.kv_heads, slice.tp_size, slice.tp_rank);
  if (!heads) return heads.status();

  LayoutGroup group;
  group.layers = layers_of(geometry.layers, slice.pp_size, slice.pp_rank);
  group.kv_heads = geometry.kv_heads;
  group.head_dim = geometry.head_dim;
  group.mla = geometry.mla;
  group.dtype = geometry.dtype;
  group.page_tokens = options.page_tokens;
  group.page_count = options.page_count;
  group.token_order = options.token_order;
  group.heads = *heads;

  const std::uint64_t parts = geometry.mla ? 1 : 2;
  const std::uint64_t unit = group.tensor_page_bytes();
  if (unit > PageLayout::kTensorPageBytesMax) {
    return Status(Code::invalid_argument, "layout group: a page of one tensor exceeds 1 GiB");
  }
  const Order order = order_of(options, group.layers.count, parts);
  std::uint64_t slab = 0;
  if (__builtin_mul_overflow(unit * parts * options.page_count, group.layers.count, &slab) ||
      slab > PageLayout::kRegionBytesMax || options.region_offset > PageLayout::kRegionBytesMax) {
    return Status(Code::invalid_argument, "layout group: pages exceed the region limit");
  }
  group.page_stride = order.page * unit;
  for (std::uint32_t layer = 0; layer < group.layers.count; ++layer) {
    for (std::uint64_t part = 0; part < parts; ++part) {
      std::uint64_t region = options.first_region;
      std::uint64_t offset = options.region_offset;
      switch (options.regions) {
        case RegionUse::one:
          offset += (layer * order.layer + part * order.v) * unit;
          break;
        case RegionUse::per_layer:
          region += layer;
          offset += part * order.v * unit;
          break;
        case RegionUse::per_tensor:
          region += layer * parts + part;
          break;
      }
      if (region >= PageLayout::kRegionsMax) {
        return Status(Code::invalid_argument, "layout group: region index out of range");
      }
      (part == 0 ? group.k : group.v).push_back({static_cast<std::uint32_t>(region), offset});
    }
  }
  std::vector<LayoutGroup> groups;
  groups.push_back(std::move(group));
  return PageLayout::create(geometry.layers, slice, std::move(groups));
}

}  // namespace kvl
