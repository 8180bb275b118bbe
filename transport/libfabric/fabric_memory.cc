// Registration.
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

Status FabricMemory::enrol(LocalMemory& entry) {
  const Memory& memory = entry.memory;
  const bool local = endpoint_.mr_mode(FI_MR_LOCAL) != 0;
  if (memory.access == Access::local && !local) return {};
  iovec range{memory.data, memory.bytes};
  MrAttributes given;
  fi_mr_attr& attributes = given.known;
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
