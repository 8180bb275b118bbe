// Memory of ours: registered with the device, by slot and generation. Thread-safe.
#pragma once

#include <atomic>
#include <vector>

#include "kvl/transport.h"
#include "transport/fabric/memory_table.h"
#include "transport/libfabric/fabric_endpoint.h"

namespace kvl::libfabric {

struct LocalMemory : NamedMemory {
  std::vector<Fid<fid_mr>> parts;  // none where neither side's device needs it
  std::vector<void*> descs;        // of each, where operations of ours need it

  void* desc_at(std::uint64_t offset) const {
    if (descs.empty()) return nullptr;
    return name.part_bytes == 0 ? descs.front() : descs[offset / name.part_bytes];
  }
  std::uint64_t stretch_at(std::uint64_t offset) const {
    return descs.empty() ? memory.bytes - offset : name.stretch_at(offset);
  }
};

class FabricMemory final : public MemoryTable<LocalMemory> {
 public:
  FabricMemory(const Endpoint& endpoint, std::uint64_t part_bytes)
      : endpoint_(endpoint), part_bytes_(part_bytes == 0 ? UINT64_MAX : part_bytes) {}
  Result<MemoryId> add(const Memory& memory);

 private:
  Status enrol(LocalMemory& entry);
  int enrol_in_parts(LocalMemory& entry, std::uint64_t part_bytes, bool by_dmabuf);
  int enrol_part(LocalMemory& entry, std::uint64_t offset, std::uint64_t bytes, bool by_dmabuf);

  const Endpoint& endpoint_;
  std::atomic<std::uint64_t> part_bytes_;  // the longest that the device was found to take
};

}  // namespace kvl::libfabric
