// Registration.
#include "transport/verbs/verbs_memory.h"

#include <cerrno>

namespace kvl::verbs {
namespace {

// The device reads local memory in any case; it writes there for our reads.
unsigned int rights(Access access, bool relaxed_ordering) {
  unsigned int bits = IBV_ACCESS_LOCAL_WRITE;
  if (allows(access, Access::remote_read)) bits |= IBV_ACCESS_REMOTE_READ;
  if (allows(access, Access::remote_write)) bits |= IBV_ACCESS_REMOTE_WRITE;
  // Not known to a device: ignored. What tells of arrival, completions and messages, is never
  // reordered before what has arrived.
  if (relaxed_ordering) bits |= IBV_ACCESS_RELAXED_ORDERING;
  return bits;
}

Status registration_error(int error) {
  switch (error) {
    case ENOMEM:
    case EAGAIN:
      return {Code::exhausted,
              "register memory with the NIC: raise the limit of locked memory (ulimit -l, "
              "LimitMEMLOCK=infinity, --ulimit memlock=-1)",
              error};
    case ENOSPC:
      return {Code::exhausted,
              "register memory with the NIC: it has no more entries; use huge pages", error};
    case EFAULT:
      return {Code::invalid_argument, "register memory that is not mapped for writing", error};
    case EOPNOTSUPP:
      return {Code::unsupported, "the NIC takes no dmabuf", error};
    default:
      return {Code::unavailable, "register memory with the NIC", error};
  }
}

}  // namespace

Status VerbsMemory::enrol(LocalMemory& entry, bool by_dmabuf) {
  const Memory& memory = entry.memory;
  const VerbsApi& api = port_.api();
  if (memory.bytes > port_.memory_bytes_max()) {
    return {Code::exhausted, "the NIC registers no range that long: register it in parts"};
  }
  const unsigned int access = rights(memory.access, port_.config().relaxed_ordering);
  const auto address = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(memory.data));
  ibv_mr* mr = nullptr;
  if (!by_dmabuf) {
    mr = api.reg_mr(port_.pd(), memory.data, memory.bytes, address, access);
  } else if (memory.shared_fd < 0 || api.reg_dmabuf_mr == nullptr) {
    return {Code::unsupported, "memory of a GPU, and no dmabuf of it"};
  } else {
    mr = api.reg_dmabuf_mr(port_.pd(), memory.shared_offset, memory.bytes, address,
                           memory.shared_fd, static_cast<int>(access));
  }
  if (mr == nullptr) return registration_error(errno);
  entry.mr = Owned<ibv_mr>(mr, {api.dereg_mr});
  entry.name.key = mr->rkey;
  entry.name.base = address;
  return {};
}

Result<MemoryId> VerbsMemory::add(const Memory& memory, bool by_dmabuf) {
  KVL_TRY(check_range(memory));
  LocalMemory entry;
  entry.memory = memory;
  KVL_TRY(enrol(entry, by_dmabuf));
  entry.name.access = memory.access;
  entry.name.bytes = memory.bytes;
  return insert(std::move(entry));
}

}  // namespace kvl::verbs
