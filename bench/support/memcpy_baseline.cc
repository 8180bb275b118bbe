// The memcpy baseline.
#include "bench/support/memcpy_baseline.h"

#include <cstring>

namespace kvl::bench {

void memcpy_ops(std::byte* remote, const std::byte* local, std::span<const PageOp> ops) {
  for (const PageOp& op : ops) {
    for (std::uint64_t i = 0; i < op.count; ++i) {
      std::memcpy(remote + op.remote_offset + i * op.remote_stride,
                  local + op.local_offset + i * op.local_stride, op.bytes);
    }
  }
}

void memcpy_ops_back(std::byte* local, const std::byte* remote, std::span<const PageOp> ops) {
  for (const PageOp& op : ops) {
    for (std::uint64_t i = 0; i < op.count; ++i) {
      std::memcpy(local + op.local_offset + i * op.local_stride,
                  remote + op.remote_offset + i * op.remote_stride, op.bytes);
    }
  }
}

}  // namespace kvl::bench
