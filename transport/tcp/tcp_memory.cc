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
    std::erase_if(granted_, [&](const auto& granted) {
      if (granted.first.second != id.value) return false;
      grants_.erase(granted.second);
      return true;
    });
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

Result<std::uint64_t> MemoryTable::grant(MemoryId id, std::uint64_t peer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (entries_.find(id.value) == nullptr) {
    return Status{Code::invalid_argument, "export unknown memory"};
  }
  const auto [known, fresh] = granted_.try_emplace({peer, id.value}, 0);
  if (fresh) {
    const auto [name, grant] = grants_.insert();
    *grant = {id.value, peer};
    known->second = name;
  }
  return known->second;
}

void MemoryTable::revoke(std::uint64_t peer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto granted = granted_.lower_bound({peer, 0});
  while (granted != granted_.end() && granted->first.first == peer) {
    grants_.erase(granted->second);
    granted = granted_.erase(granted);
  }
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

std::byte* MemoryTable::target(const WireRun& run, std::uint64_t peer, Access wanted, Seen& seen,
                               Code& code) const {
  if (seen.grant != run.memory) {
    const Grant* const grant = grants_.find(run.memory);
    const std::uint64_t id = grant != nullptr && grant->peer == peer ? grant->memory : 0;
    seen = {run.memory, id, find(id)};
  }
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
