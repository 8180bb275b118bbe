// CRC-32C (Castagnoli, RFC 3720 appendix B.4): the checksum of page runs and of stored blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace kvl {

// Of `data`, going on from `crc` (the result for the bytes before it; 0: none). Uses the best that
// the CPU has; `crc_bench` measures it. Thread-safe.
std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t crc = 0);

// Of `count` pieces of `bytes` each, `stride` apart, as if they lay one after the other.
std::uint32_t crc32c_strided(const std::byte* first, std::uint64_t bytes, std::uint64_t count,
                             std::uint64_t stride, std::uint32_t crc = 0);

// The table implementation, which crc32c() uses where the CPU has no instruction.
std::uint32_t crc32c_portable(std::span<const std::byte> data, std::uint32_t crc = 0);
// The implementations that this CPU can run, the best first; tables are always the last.
struct Crc32cKind {
  std::string_view name;
  std::uint32_t (*run)(std::span<const std::byte> data, std::uint32_t crc);
};
std::span<const Crc32cKind> crc32c_kinds();
// Whether there is more than tables.
bool crc32c_has_hardware();

}  // namespace kvl
