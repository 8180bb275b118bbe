// Memory as a Link keeps it: ours by slot and generation, the peer's by card.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvl/memory.h"
#include "kvl/status.h"
#include "kvl/transport.h"
#include "transport/base/batch_cursor.h"
#include "transport/base/unique_fd.h"
#include "transport/shm/shm_outbox.h"
#include "transport/shm/shm_wire.h"

namespace kvl::shm {

// One registered memory. The fields do not change while `uses` > 0.
struct LocalMemory {
  std::atomic<std::uint32_t> uses{0};  // batches in flight
  std::uint32_t generation = 0;        // > 0 once used
  bool live = false;
  bool direct = true;  // the CPU may touch it
  Memory memory;
  UniqueFd fd;  // ours: the caller may close its own
  MemoryCard card;
};

// The memories of one Link. Thread-safe by its owner's mutex, except at(): a slot that is in use
// stands still.
class MemoryTable {
 public:
  MemoryTable() : slots_(std::make_unique<LocalMemory[]>(kMemoriesMax)) {}

  // invalid_argument; exhausted: kMemoriesMax are registered, or no descriptor is left.
  Result<MemoryId> add(const Memory& memory, bool direct);
  LocalMemory* find(MemoryId id);
  void remove(MemoryId id);
  // Only for an id that find() has known since it was last in use.
  LocalMemory& at(MemoryId id) { return slots_[slot_of(id)]; }
  LocalMemory* live_at(std::uint32_t slot) {
    return slot < used_ && slots_[slot].live ? &slots_[slot] : nullptr;
  }
  static std::uint32_t slot_of(MemoryId id) { return static_cast<std::uint32_t>(id.value) - 1U; }

 private:
  std::unique_ptr<LocalMemory[]> slots_;
  std::vector<std::uint32_t> free_;
  std::uint32_t used_ = 0;  // slots ever used
};

inline constexpr std::uint64_t kSeenBytes = 64 << 10;

// A memory of a peer, announced over its socket or imported before that.
struct RemoteMemory {
  MemoryCard card;  // the peer's own word once `announced`
  bool announced = false;
  bool gone = false;       // withdrawn by the peer
  Status refused;          // why it cannot be used
  Mapping mapping;         // MemoryPath::mapped
  std::vector<bool> seen;  // chunks of the mapping that were read once; see look_before_writing()
  std::uint32_t uses = 0;
  std::uint32_t names = 0;
};

// What a RemoteId names.
struct RemoteName {
  PeerId peer;
  MemoryCard card;  // from the imported blob: must equal memory->card
  RemoteMemory* memory = nullptr;
  std::uint32_t uses = 0;
  bool dropped = false;
  std::int64_t deadline_ns = 0;  // for the announcement to come
};

}  // namespace kvl::shm
