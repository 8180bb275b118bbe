// The memory of one side of the benchmark.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kvl/memory.h"
#include "kvl/status.h"

namespace kvl::bench {

// Page-aligned, zero-filled. Ours: a SharedBuffer, as an engine should allocate. Foreign: plain
// anonymous memory, as an engine that knows nothing of us has.
class Arena {
 public:
  // exhausted: less memory is free than asked.
  static Result<std::unique_ptr<Arena>> open(std::uint64_t bytes, bool foreign);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  std::byte* data() const { return data_; }
  std::span<std::byte> bytes() const { return {data_, bytes_}; }
  Memory memory() const;

 private:
  Arena() = default;
  std::unique_ptr<SharedBuffer> shared_;
  std::byte* data_ = nullptr;
  std::uint64_t bytes_ = 0;
};

// Of MemAvailable in /proc/meminfo; UINT64_MAX when it cannot be read.
std::uint64_t available_memory_bytes();

// What this process has used, user and system, all threads.
double cpu_seconds_used();
// Resident memory of this process.
std::uint64_t process_rss_bytes();

}  // namespace kvl::bench
