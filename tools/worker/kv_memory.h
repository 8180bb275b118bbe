// The memory of one rank's KV pages, registered with the rank's engine.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "kvl/engine.h"
#include "kvl/handoff.h"
#include "kvl/memory.h"
#include "worker/paged_kv.h"

namespace kvl::worker {

class KvMemory {
 public:
  // Zero-filled on first touch: a pool costs what was used of it. exhausted: no memory.
  static Result<std::unique_ptr<KvMemory>> open(PageLayout layout);

  const PagedKv& kv() const { return *kv_; }
  // For HandoffRank. The memory must outlive the engine.
  Result<std::vector<HandoffRegion>> register_with(Engine& engine) const;

 private:
  KvMemory() = default;
  std::vector<std::unique_ptr<SharedBuffer>> buffers_;
  std::optional<PagedKv> kv_;
};

}  // namespace kvl::worker
