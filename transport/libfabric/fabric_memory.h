// Memory of ours: registered with the device, by slot and generation. Thread-safe.
#pragma once

#include "kvl/transport.h"
#include "transport/fabric/memory_table.h"
#include "transport/libfabric/fabric_endpoint.h"

namespace kvl::libfabric {

struct LocalMemory : NamedMemory {
  Fid<fid_mr> mr;  // null where neither side's device needs it
  void* desc = nullptr;
};

class FabricMemory final : public MemoryTable<LocalMemory> {
 public:
  explicit FabricMemory(const Endpoint& endpoint) : endpoint_(endpoint) {}
  Result<MemoryId> add(const Memory& memory);

 private:
  Status enrol(LocalMemory& memory);

  const Endpoint& endpoint_;
};

}  // namespace kvl::libfabric
