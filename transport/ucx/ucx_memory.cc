// Registration.
#include "transport/ucx/ucx_memory.h"

#include "transport/ucx/ucx_wire.h"

namespace kvl::ucx {
namespace {

unsigned rights(Access access) {
  unsigned bits = UCP_MEM_MAP_PROT_LOCAL_READ | UCP_MEM_MAP_PROT_LOCAL_WRITE;
  if (allows(access, Access::remote_read)) bits |= UCP_MEM_MAP_PROT_REMOTE_READ;
  if (allows(access, Access::remote_write)) bits |= UCP_MEM_MAP_PROT_REMOTE_WRITE;
  return bits;
}

}  // namespace

Result<LocalMemory> enrol(const Worker& worker, const Memory& memory, bool copies) {
  KVL_TRY(check_range(memory));
  LocalMemory entry;
  entry.memory = memory;
  if (copies) return entry;
  const UcxApi& api = worker.api();
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                      UCP_MEM_MAP_PARAM_FIELD_PROT | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
  params.address = memory.data;
  params.length = memory.bytes;
  params.prot = rights(memory.access);
  params.memory_type = UCS_MEMORY_TYPE_HOST;
  ucp_mem_h mapped = nullptr;
  ucs_status_t status = api.mem_map(worker.context(), &params, &mapped);
  if (status == UCS_ERR_NO_MEMORY) {
    return Status{Code::exhausted, "register memory with UCX: see ulimit -l, or use huge pages"};
  }
  if (status != UCS_OK) return Status{Code::unavailable, "register memory with UCX"};
  entry.mapped = MappedMemory(mapped, {&api, worker.context()});
  if (memory.access == Access::local) return entry;
  void* key = nullptr;
  std::size_t bytes = 0;
  status = api.rkey_pack(worker.context(), mapped, &key, &bytes);
  if (status != UCS_OK) return Status{Code::unavailable, "name memory with UCX"};
  const auto* const raw = static_cast<const std::byte*>(key);
  entry.key.assign(raw, raw + bytes);
  api.rkey_buffer_release(key);
  if (bytes > kKeyBytesMax) return Status{Code::unsupported, "UCX's key of memory is too long"};
  return entry;
}

}  // namespace kvl::ucx
