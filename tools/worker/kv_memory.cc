// The memory of one rank's KV pages.
#include "worker/kv_memory.h"

#include <optional>

namespace kvl::worker {

Result<std::unique_ptr<KvMemory>> KvMemory::open(PageLayout layout) {
  std::unique_ptr<KvMemory> memory(new KvMemory);
  std::vector<std::span<std::byte>> regions;
  for (std::uint32_t i = 0; i < layout.region_count(); ++i) {
    Result<std::unique_ptr<SharedBuffer>> buffer =
        SharedBuffer::open(layout.region_bytes(i), "kvlane-worker");
    if (!buffer) return buffer.status();
    regions.emplace_back((*buffer)->data(), (*buffer)->bytes());
    memory->buffers_.push_back(*std::move(buffer));
  }
  Result<PagedKv> kv = PagedKv::create(std::move(layout), std::move(regions));
  if (!kv) return kv.status();
  memory->kv_ = *std::move(kv);
  return memory;
}

Result<std::vector<HandoffRegion>> KvMemory::register_with(Engine& engine) const {
  std::vector<HandoffRegion> regions;
  for (const std::unique_ptr<SharedBuffer>& buffer : buffers_) {
    const Result<MemoryHandle> handle = engine.register_memory(buffer->memory(Access::remote_all));
    if (!handle) return handle.status();
    regions.push_back({*handle, buffer->data(), buffer->bytes()});
  }
  return regions;
}

}  // namespace kvl::worker
