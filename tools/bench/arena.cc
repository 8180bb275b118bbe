// Arenas, and what this process uses.
#include "tools/bench/arena.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>

#include "transport/base/host_files.h"

namespace kvl::bench {

Result<std::unique_ptr<Arena>> Arena::open(std::uint64_t bytes, bool foreign) {
  if (bytes > available_memory_bytes()) {
    return Status{Code::exhausted, "an arena needs more memory than is free; use fewer pages"};
  }
  std::unique_ptr<Arena> arena(new Arena);
  arena->bytes_ = bytes;
  if (!foreign) {
    auto shared = SharedBuffer::open(bytes, "kvlane-bench");
    if (!shared.ok()) return shared.status();
    arena->shared_ = std::move(*shared);
    arena->data_ = arena->shared_->data();
    return arena;
  }
  void* const data =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return Status{Code::exhausted, "map an arena", errno};
  arena->data_ = static_cast<std::byte*>(data);
  return arena;
}

Arena::~Arena() {
  if (shared_ == nullptr && data_ != nullptr) ::munmap(data_, bytes_);
}

Memory Arena::memory() const {
  if (shared_ == nullptr) return {.data = data_, .bytes = bytes_, .access = Access::remote_all};
  return shared_->memory(Access::remote_all);
}

std::uint64_t available_memory_bytes() {
  const std::int64_t kib = meminfo("MemAvailable");
  return kib < 0 ? UINT64_MAX : static_cast<std::uint64_t>(kib) << 10;
}

double cpu_seconds_used() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::uint64_t process_rss_bytes() {
  std::ifstream file("/proc/self/statm");
  std::uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace kvl::bench
