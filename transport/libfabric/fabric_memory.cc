// Registration. Pinning may take long, so it happens outside the lock.
#include "transport/libfabric/fabric_memory.h"

#include <sys/uio.h>

#include "transport/base/crypto.h"

namespace kvl::libfabric {
namespace {

std::uint64_t random_key(std::size_t bytes) {
  std::uint64_t key = 0;
  crypto::random(std::as_writable_bytes(std::span(&key, 1)));
  return bytes < sizeof(key) ? key & ((std::uint64_t{1} << (8 * bytes)) - 1) : key;
}

std::uint64_t rights(Access access) {
  std::uint64_t bits = FI_READ | FI_WRITE | FI_SEND | FI_RECV;
  if (allows(access, Access::remote_read)) bits |= FI_REMOTE_READ;
  if (allows(access, Access::remote_write)) bits |= FI_REMOTE_WRITE;
  return bits;
}

}  // namespace

Status MemoryTable::enrol(LocalMemory& entry) {
  const Memory& memory = entry.memory;
  const bool local = endpoint_.mr_mode(FI_MR_LOCAL) != 0;
  if (memory.access == Access::local && !local) return {};
  iovec range{memory.data, memory.bytes};
  fi_mr_attr attributes{};
  attributes.mr_iov = &range;
  attributes.iov_count = 1;
  attributes.access = rights(memory.access);
  attributes.iface = memory.kind == MemoryKind::cuda ? FI_HMEM_CUDA : FI_HMEM_SYSTEM;
  if (memory.kind == MemoryKind::cuda) attributes.device.cuda = memory.device;
  fid_mr* mr = nullptr;
  int error = -FI_ENOKEY;
  // Keys of our choosing are random, so that nobody guesses them; one may be taken.
  for (int attempt = 0; attempt < 16 && error == -FI_ENOKEY; ++attempt) {
    attributes.requested_key = random_key(endpoint_.key_bytes());
    error = ::fi_mr_regattr(endpoint_.domain(), &attributes, 0, &mr);
  }
  if (error == -FI_ENOMEM || error == -FI_ENOSPC) {
    return {Code::exhausted, "register memory with the NIC: see ulimit -l, or use huge pages",
            -error};
  }
  if (error != 0) return {Code::unavailable, "register memory with the NIC", -error};
  entry.mr.reset(mr);
  entry.desc = local ? ::fi_mr_desc(mr) : nullptr;
  entry.name.key = ::fi_mr_key(mr);
  entry.name.base = endpoint_.mr_mode(FI_MR_VIRT_ADDR) != 0
                        ? static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(memory.data))
                        : 0;
  return {};
}

Result<MemoryId> MemoryTable::add(const Memory& memory) {
  std::uintptr_t end = 0;
  if (memory.data == nullptr || memory.bytes == 0 || static_cast<unsigned>(memory.access) > 3 ||
      __builtin_add_overflow(reinterpret_cast<std::uintptr_t>(memory.data), memory.bytes, &end)) {
    return Status{Code::invalid_argument, "register an empty or impossible range"};
  }
  LocalMemory entry;
  entry.memory = memory;
  KVL_TRY(enrol(entry));
  entry.name.access = memory.access;
  entry.name.bytes = memory.bytes;
  const std::lock_guard<std::mutex> lock(mutex_);
  entry.name.serial = ++serials_;
  const auto [id, slot] = entries_.insert();
  *slot = std::move(entry);
  return MemoryId{id};
}

Status MemoryTable::remove(MemoryId id) {
  Fid<fid_mr> mr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    LocalMemory* const entry = entries_.find(id.value);
    if (entry == nullptr) return {Code::invalid_argument, "remove unknown memory"};
    if (entry->uses > 0) return {Code::exhausted, "memory is in use by a batch"};
    for (const std::uint64_t peer : entry->told_to) {
      forgotten_.emplace_back(peer, entry->name.serial);
    }
    has_forgotten_.store(!forgotten_.empty(), std::memory_order_release);
    mr = std::move(entry->mr);
    entry->told_to.clear();
    entries_.erase(id.value);
  }
  return {};  // the registration ends here: the key is worth nothing any more
}

Result<RemoteName> MemoryTable::tell(MemoryId id, std::uint64_t peer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  LocalMemory* const entry = entries_.find(id.value);
  if (entry == nullptr) return Status{Code::invalid_argument, "export unknown memory"};
  if (entry->memory.access == Access::local) {
    return Status{Code::permission, "export memory that was registered as private"};
  }
  std::erase(entry->told_to, peer);
  entry->told_to.push_back(peer);
  return entry->name;
}

void MemoryTable::close_all() {
  const std::lock_guard<std::mutex> lock(mutex_);
  entries_.for_each([](std::uint64_t, LocalMemory& entry) { entry.mr.reset(); });
}

Status MemoryTable::hold(std::span<const MemoryId> ids) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const MemoryId id : ids) {
    if (entries_.find(id.value) == nullptr) return {Code::invalid_argument, "stale local memory"};
  }
  for (const MemoryId id : ids) ++entries_.find(id.value)->uses;
  return {};
}

void MemoryTable::release(std::span<const MemoryId> ids) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const MemoryId id : ids) --entries_.find(id.value)->uses;
}

const LocalMemory* MemoryTable::find(MemoryId id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return entries_.find(id.value);
}

bool MemoryTable::has_forgotten() { return has_forgotten_.load(std::memory_order_acquire); }

void MemoryTable::take_forgotten(Forgotten& out) {
  const std::lock_guard<std::mutex> lock(mutex_);
  out.swap(forgotten_);
  forgotten_.clear();
  has_forgotten_.store(false, std::memory_order_release);
}

}  // namespace kvl::libfabric
