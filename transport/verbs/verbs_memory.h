// Memory of ours, registered with the device. Thread-safe.
#pragma once

#include "kvl/transport.h"
#include "transport/fabric/memory_table.h"
#include "transport/verbs/verbs_port.h"

namespace kvl::verbs {

struct LocalMemory : NamedMemory {
  Owned<ibv_mr> mr;
};

class VerbsMemory final : public MemoryTable<LocalMemory> {
 public:
  explicit VerbsMemory(const OpenPort& port) : port_(port) {}
  // `by_dmabuf`: through memory.shared_fd, which is a dmabuf of it. invalid_argument: not a range,
  // or not mapped; exhausted: a limit of the process or the device; unsupported: no dmabuf, or the
  // device takes none.
  Result<MemoryId> add(const Memory& memory, bool by_dmabuf);

 private:
  Status enrol(LocalMemory& memory, bool by_dmabuf);

  const OpenPort& port_;
};

}  // namespace kvl::verbs
