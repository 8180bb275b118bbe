// Registration.
#include "transport/libfabric/fabric_memory.h"

#include <sys/uio.h>

#include <algorithm>
#include <bit>

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

// Errors with which providers refuse a range for its length.
bool is_too_much(int error) {
  return error == -FI_ENOMEM || error == -FI_ENOSPC || error == -FI_EINVAL || error == -FI_E2BIG ||
         error == -FI_EOVERFLOW || error == -FI_EMSGSIZE;
}

}  // namespace

// Registers [offset, offset + bytes). 0 or libfabric's error.
int FabricMemory::enrol_part(LocalMemory& entry, std::uint64_t offset, std::uint64_t bytes,
                             bool by_dmabuf) {
  const Memory& memory = entry.memory;
  iovec range{memory.data + offset, bytes};
  const MrDmabuf dmabuf{memory.shared_fd, memory.shared_offset + offset, bytes,
                        memory.data - memory.shared_offset};
  MrAttributes given;
  fi_mr_attr& attributes = given.known;
  attributes.mr_iov = &range;
  if (by_dmabuf) set_dmabuf(given, dmabuf);
  attributes.iov_count = 1;
  attributes.access = rights(memory.access);
  attributes.iface = memory.kind == MemoryKind::cuda ? FI_HMEM_CUDA : FI_HMEM_SYSTEM;
  if (memory.kind == MemoryKind::cuda) attributes.device.cuda = memory.device;
  fid_mr* mr = nullptr;
  int error = -FI_ENOKEY;
  // Keys of our choosing are random, so that nobody guesses them; one may be taken.
  for (int attempt = 0; attempt < 16 && error == -FI_ENOKEY; ++attempt) {
    attributes.requested_key = random_key(endpoint_.key_bytes());
    error = ::fi_mr_regattr(endpoint_.domain(), &attributes, by_dmabuf ? kMrDmabuf.flag : 0, &mr);
  }
  if (error != 0) return error;
  entry.parts.emplace_back(mr);
  if (endpoint_.mr_mode(FI_MR_LOCAL) != 0) entry.descs.push_back(::fi_mr_desc(mr));
  if (offset == 0) {
    entry.name.key = ::fi_mr_key(mr);
  } else {
    entry.name.more_keys.push_back(::fi_mr_key(mr));
  }
  return 0;
}

// All of it or nothing.
int FabricMemory::enrol_in_parts(LocalMemory& entry, std::uint64_t part_bytes, bool by_dmabuf) {
  const std::uint64_t bytes = entry.memory.bytes;
  if ((bytes - 1) / part_bytes >= kPartsMax) return -FI_E2BIG;
  entry.name.part_bytes = part_bytes < bytes ? part_bytes : 0;
  for (std::uint64_t offset = 0; offset < bytes;) {
    const std::uint64_t part = std::min(part_bytes, bytes - offset);
    if (const int error = enrol_part(entry, offset, part, by_dmabuf); error != 0) {
      entry.parts.clear();
      entry.descs.clear();
      entry.name.more_keys.clear();
      return error;
    }
    offset += part;
  }
  return 0;
}

Status FabricMemory::enrol(LocalMemory& entry) {
  const Memory& memory = entry.memory;
  if (memory.access == Access::local && endpoint_.mr_mode(FI_MR_LOCAL) == 0) return {};
  // A dmabuf says where the memory is; without one, or where the device does not take it, the
  // provider asks the driver of the GPU.
  const bool by_dmabuf = memory.kind == MemoryKind::cuda && memory.shared_fd >= 0 &&
                         endpoint_.version() >= kMrDmabuf.since;
  std::uint64_t part_bytes = std::max(part_bytes_.load(std::memory_order_relaxed), kPartBytesMin);
  const auto attempt = [&] {
    const int refused = by_dmabuf ? enrol_in_parts(entry, part_bytes, true) : -FI_ENOSYS;
    return refused == 0 ? 0 : enrol_in_parts(entry, part_bytes, false);
  };
  int error = attempt();
  // No provider says beforehand how much it takes: halves, until it does.
  for (part_bytes = std::bit_ceil(std::min(part_bytes, memory.bytes));
       is_too_much(error) && part_bytes > kPartBytesMin;) {
    part_bytes /= 2;
    error = attempt();
    if (error == 0) part_bytes_.store(part_bytes, std::memory_order_relaxed);
  }
  if (error == -FI_ENOMEM || error == -FI_ENOSPC) {
    return {Code::exhausted, "register memory with the NIC: see ulimit -l, or use huge pages",
            -error};
  }
  if (error != 0) return {Code::unavailable, "register memory with the NIC", -error};
  entry.name.base = endpoint_.mr_mode(FI_MR_VIRT_ADDR) != 0
                        ? static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(memory.data))
                        : 0;
  return {};
}

Result<MemoryId> FabricMemory::add(const Memory& memory) {
  KVL_TRY(check_range(memory));
  LocalMemory entry;
  entry.memory = memory;
  KVL_TRY(enrol(entry));
  entry.name.access = memory.access;
  entry.name.bytes = memory.bytes;
  return insert(std::move(entry));
}

}  // namespace kvl::libfabric
