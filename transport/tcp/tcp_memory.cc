// Registrations: a table under a lock, and removal that waits for one system call at most.
#include "transport/tcp/tcp_memory.h"

#include <sched.h>

namespace kvl::tcp {

Result<MemoryId> MemoryTable::add(const Memory& memory) {
  std::uintptr_t end = 0;
  if (memory.data == nullptr || memory.bytes == 0 ||
      __builtin_add_overflow(reinterpret_cast<std::uintptr_t>(memory.data), memory.bytes, &end)) {
    return Status{Code::invalid_argument, "register an empty or impossible range"};
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto [id, entry] = entries_.insert();
  *entry = Entry{memory, 0};
  return MemoryId{id};
}

Status MemoryTable::remove(MemoryId id) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Entry* const entry = entries_.find(id.value);
    if (entry == nullptr) return {Code::invalid_argument, "remove unknown memory"};
    if (entry->used > 0) return {Code::exhausted, "memory is in use by a batch"};
    entries_.erase(id.value);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
  }
  // A call that entered before the epoch moved may still touch the memory: wait for its end. One
  // that enters later sees the epoch.
  const std::uint64_t io = io_.load(std::memory_order_seq_cst);
  if ((io & 1U) != 0) {
    while (io_.load(std::memory_order_acquire) == io) ::sched_yield();
  }
  return {};
}

Status MemoryTable::hold(std::span<const MemoryId> ids) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const MemoryId id : ids) {
    if (entries_.find(id.value) == nullptr) {
      return {Code::invalid_argument, "batch names unknown local memory"};
    }
  }
  for (const MemoryId id : ids) ++entries_.find(id.value)->used;
  return {};
}

void MemoryTable::release(std::span<const MemoryId> ids) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const MemoryId id : ids) --entries_.find(id.value)->used;
}

void MemoryTable::pin(std::uint64_t id) {
  if (Entry* const entry = entries_.find(id)) ++entry->used;
}

void MemoryTable::unpin(std::uint64_t id) {
  if (Entry* const entry = entries_.find(id)) --entry->used;
}

const Memory* MemoryTable::find(std::uint64_t id) const {
  const Entry* const entry = entries_.find(id);
  return entry == nullptr ? nullptr : &entry->memory;
}

std::byte* MemoryTable::target(const WireRun& run, Access wanted, Seen& seen, Code& code) const {
  if (seen.id != run.memory) seen = {run.memory, find(run.memory)};
  const Memory* const memory = seen.memory;
  if (memory == nullptr || !allows(memory->access, wanted)) {
    code = Code::permission;
    return nullptr;
  }
  if (!run_fits(run.offset, run.stride, run.bytes, run.count, memory->bytes)) {
    code = Code::invalid_argument;
    return nullptr;
  }
  return memory->data + run.offset;
}

bool MemoryTable::revalidate(RunList& list) const {
  bool lost = false;
  for (std::uint32_t i = 0; i < list.count(); ++i) {
    RunView& view = list.view(i);
    if (view.at != nullptr && entries_.find(view.memory) == nullptr) {
      view.at = nullptr;
      lost = true;
    }
  }
  return lost;
}

}  // namespace kvl::tcp
