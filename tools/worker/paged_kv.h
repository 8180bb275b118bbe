// One rank's KV cache in memory: a PageLayout and the regions it speaks of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvl/page_layout.h"
#include "kvl/status.h"

namespace kvl::worker {

// Does not own the regions; they must outlive it. Immutable: concurrent use of different pages is
// the caller's affair. Group 0 of the layout is the cache; the reference engine has no other.
class PagedKv {
 public:
  // invalid_argument when a region is missing, or smaller than the layout says.
  static Result<PagedKv> create(PageLayout layout, std::vector<std::span<std::byte>> regions);

  const PageLayout& layout() const { return layout_; }
  const LayoutGroup& group() const { return layout_.groups()[0]; }
  std::span<const std::span<std::byte>> regions() const { return regions_; }

  // The element (layer, part, token 0, head) of a page; layer and head as the whole model counts
  // them and held here, page below the layout's page_count.
  std::byte* at(std::uint32_t layer, KvPart part, std::uint32_t page, std::uint32_t head) const {
    const LayoutGroup& g = group();
    const TensorPlace& place = (part == KvPart::k ? g.k : g.v)[layer - g.layers.first];
    return regions_[place.region].data() + place.offset + page * g.page_stride +
           (head - g.heads.first) * g.head_stride();
  }
  // Between neighbouring tokens of a page.
  std::uint64_t token_stride() const { return group().token_stride(); }

 private:
  PagedKv(PageLayout layout, std::vector<std::span<std::byte>> regions)
      : layout_(std::move(layout)), regions_(std::move(regions)) {}
  PageLayout layout_;
  std::vector<std::span<std::byte>> regions_;
};

}  // namespace kvl::worker
