// Memory of ours: registered with the device, by slot and generation. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/slot_map.h"
#include "transport/libfabric/fabric_endpoint.h"
#include "transport/libfabric/fabric_wire.h"

namespace kvl::libfabric {

struct LocalMemory {
  Memory memory;
  Fid<fid_mr> mr;  // null where neither side's device needs it
  void* desc = nullptr;
  RemoteName name;                     // as peers know it
  std::uint32_t uses = 0;              // batches in flight
  std::vector<std::uint64_t> told_to;  // peers that have the name
};

class MemoryTable {
 public:
  explicit MemoryTable(const Endpoint& endpoint) : endpoint_(endpoint) {}

  Result<MemoryId> add(const Memory& memory);
  // invalid_argument: no such id; exhausted: in use.
  Status remove(MemoryId id);
  // invalid_argument; permission: it is private.
  Result<RemoteName> tell(MemoryId id, std::uint64_t peer);
  void close_all();

  // All or none. invalid_argument: one is stale.
  Status hold(std::span<const MemoryId> ids);
  void release(std::span<const MemoryId> ids);
  // Stands still while it is held.
  const LocalMemory* find(MemoryId id);
  // Peers that are still to learn that a name is gone: peer, serial.
  using Forgotten = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  bool has_forgotten();
  void take_forgotten(Forgotten& out);

 private:
  Status enrol(LocalMemory& memory);

  const Endpoint& endpoint_;
  std::mutex mutex_;
  SlotMap<LocalMemory> entries_;
  std::uint64_t serials_ = 0;
  Forgotten forgotten_;
  std::atomic<bool> has_forgotten_{false};
};

}  // namespace kvl::libfabric
