// One rank's KV cache in memory.
#include "worker/paged_kv.h"

#include <utility>

namespace kvl::worker {

Result<PagedKv> PagedKv::create(PageLayout layout, std::vector<std::span<std::byte>> regions) {
  if (layout.groups().size() != 1) {
    return Status(Code::invalid_argument, "the reference engine has one group of layers");
  }
  if (regions.size() < layout.region_count()) {
    return Status(Code::invalid_argument, "fewer memory regions than the layout names");
  }
  for (std::uint32_t i = 0; i < layout.region_count(); ++i) {
    if (regions[i].size() < layout.region_bytes(i)) {
      return Status(Code::invalid_argument, "a memory region is smaller than the layout says");
    }
  }
  return PagedKv(std::move(layout), std::move(regions));
}

}  // namespace kvl::worker
