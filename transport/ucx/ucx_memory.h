// Memory of ours: registered with UCX.
#pragma once

#include <cstddef>
#include <vector>

#include "kvl/transport.h"
#include "transport/fabric/memory_table.h"
#include "transport/ucx/ucx_worker.h"

namespace kvl::ucx {

struct LocalMemory : RegisteredMemory {
  MappedMemory mapped;
  std::vector<std::byte> key;  // as ucp_rkey_pack gives it; empty where the memory is private
};
using Memories = MemoryTable<LocalMemory>;

// `copies`: CPUs reach it, and UCX need not know it. invalid_argument; exhausted: the system lets
// no more be pinned; unavailable. Any thread.
Result<LocalMemory> enrol(const Worker& worker, const Memory& memory, bool copies);

}  // namespace kvl::ucx
