// Memory of ours that a fabric's device has registered, by slot and generation.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/slot_map.h"
#include "transport/fabric/peer_wire.h"

namespace kvl {

struct RegisteredMemory {
  Memory memory;
  std::uint64_t serial = 0;            // never used twice; peers are told by it what is gone
  std::uint32_t uses = 0;              // batches in flight
  std::vector<std::uint64_t> told_to;  // peers that have the name
};

// One that peers know by what their NICs need.
struct NamedMemory : RegisteredMemory {
  RemoteName name;
};

// A range that there can be, and rights that there are.
inline Status check_range(const Memory& memory) {
  std::uintptr_t end = 0;
  if (memory.data == nullptr || memory.bytes == 0 || static_cast<unsigned>(memory.access) > 3 ||
      __builtin_add_overflow(reinterpret_cast<std::uintptr_t>(memory.data), memory.bytes, &end)) {
    return {Code::invalid_argument, "register an empty or impossible range"};
  }
  return {};
}

// Entry is a RegisteredMemory and what the device needs; it ends the registration when it goes.
// Thread-safe. Pinning and unpinning may take long, so both happen outside the lock.
template <typename Entry>
class MemoryTable {
 public:
  // An entry that is registered: gets its serial number here.
  MemoryId insert(Entry&& entry) {
    const std::lock_guard<std::mutex> lock(mutex_);
    entry.serial = ++serials_;
    if constexpr (std::is_base_of_v<NamedMemory, Entry>) entry.name.serial = entry.serial;
    const auto [id, slot] = entries_.insert();
    *slot = std::move(entry);
    return MemoryId{id};
  }
  // The registration ends before the return: its key is worth nothing any more. invalid_argument:
  // no such id; exhausted: in use.
  Status remove(MemoryId id) {
    Entry ended;
    const std::lock_guard<std::mutex> lock(mutex_);
    Entry* const entry = entries_.find(id.value);
    if (entry == nullptr) return {Code::invalid_argument, "remove unknown memory"};
    if (entry->uses > 0) return {Code::exhausted, "memory is in use by a batch"};
    for (const std::uint64_t peer : entry->told_to) {
      forgotten_.emplace_back(peer, entry->serial);
    }
    has_forgotten_.store(!forgotten_.empty(), std::memory_order_release);
    std::swap(ended, *entry);
    entries_.erase(id.value);
    return {};
  }
  // What `peer` is to know, as name(entry) makes it. invalid_argument; permission: it is private.
  template <typename Name>
  auto tell(MemoryId id, std::uint64_t peer, Name name)
      -> Result<decltype(name(std::declval<const Entry&>()))> {
    const std::lock_guard<std::mutex> lock(mutex_);
    Entry* const entry = entries_.find(id.value);
    if (entry == nullptr) return Status{Code::invalid_argument, "export unknown memory"};
    if (entry->memory.access == Access::local) {
      return Status{Code::permission, "export memory that was registered as private"};
    }
    std::erase(entry->told_to, peer);
    entry->told_to.push_back(peer);
    return name(static_cast<const Entry&>(*entry));
  }
  Result<RemoteName> tell(MemoryId id, std::uint64_t peer) {
    return tell(id, peer, [](const NamedMemory& entry) { return entry.name; });
  }

  // f(entry) where `peer` may reach that range. invalid_argument: no such id, or bounds;
  // permission: it was not made known to this peer, or not for this.
  template <typename F>
  Status reach(MemoryId id, std::uint64_t peer, Access wanted, std::uint64_t offset,
               std::uint64_t bytes, F f) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Entry* const entry = entries_.find(id.value);
    if (entry == nullptr) return {Code::invalid_argument, "no such memory"};
    if (std::find(entry->told_to.begin(), entry->told_to.end(), peer) == entry->told_to.end() ||
        !allows(entry->memory.access, wanted)) {
      return {Code::permission, "access of memory"};
    }
    if (bytes == 0 || offset > entry->memory.bytes || bytes > entry->memory.bytes - offset) {
      return {Code::invalid_argument, "bounds of memory"};
    }
    f(*entry);
    return {};
  }

  // All or none. invalid_argument: one is stale.
  Status hold(std::span<const MemoryId> ids) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const MemoryId id : ids) {
      if (entries_.find(id.value) == nullptr) return {Code::invalid_argument, "stale local memory"};
    }
    for (const MemoryId id : ids) ++entries_.find(id.value)->uses;
    return {};
  }
  void release(std::span<const MemoryId> ids) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const MemoryId id : ids) --entries_.find(id.value)->uses;
  }
  // Stands still while it is held.
  const Entry* find(MemoryId id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return entries_.find(id.value);
  }

  // Peers that are still to learn that a name is gone: peer, serial.
  using Forgotten = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  bool has_forgotten() const { return has_forgotten_.load(std::memory_order_acquire); }
  void take_forgotten(Forgotten& out) {
    const std::lock_guard<std::mutex> lock(mutex_);
    out.swap(forgotten_);
    forgotten_.clear();
    has_forgotten_.store(false, std::memory_order_release);
  }

 private:
  std::mutex mutex_;
  SlotMap<Entry> entries_;
  std::uint64_t serials_ = 0;
  Forgotten forgotten_;
  std::atomic<bool> has_forgotten_{false};
};

}  // namespace kvl
