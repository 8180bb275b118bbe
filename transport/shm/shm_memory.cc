// The table of registered memories.
#include "transport/shm/shm_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "transport/shm/shm_socket.h"

namespace kvl::shm {
namespace {

// Peers can map it: an ordinary memfd whose size is sealed, and the range lies in it.
bool mappable(const Memory& memory, int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  struct statfs filesystem {};
  struct stat info {};
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || ::fstatfs(fd, &filesystem) != 0 ||
      filesystem.f_type != TMPFS_MAGIC || ::fstat(fd, &info) != 0) {
    return false;
  }
  const auto size = static_cast<std::uint64_t>(info.st_size);
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return memory.shared_offset % page == 0 && memory.shared_offset <= size &&
         memory.bytes <= size - memory.shared_offset;
}

}  // namespace

Result<MemoryId> MemoryTable::add(const Memory& memory, bool direct) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data);
  if (memory.data == nullptr || memory.bytes == 0 || address + memory.bytes < address ||
      static_cast<std::uint8_t>(memory.access) > 3) {
    return Status{Code::invalid_argument, "register memory: no range or unknown access"};
  }
  UniqueFd fd;
  if (memory.shared_fd >= 0 && memory.kind == MemoryKind::host) {  // of a GPU's it is a dmabuf
    fd.reset(::fcntl(memory.shared_fd, F_DUPFD_CLOEXEC, 0));
    if (!fd) {
      const bool full = errno == EMFILE || errno == ENFILE;
      return Status{full ? Code::exhausted : Code::invalid_argument, "keep a shared memory's memfd",
                    errno};
    }
    if (!mappable(memory, fd.get())) fd.reset();
  }
  std::uint32_t slot = used_;
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
  } else if (used_ < kMemoriesMax) {
    ++used_;
  } else {
    return Status{Code::exhausted, "register memory: too many memories of one shm link"};
  }
  LocalMemory& m = slots_[slot];
  if (++m.generation == 0) m.generation = 1;
  m.live = true;
  m.direct = direct;
  m.memory = memory;
  m.fd = std::move(fd);
  m.card = MemoryCard{};
  m.card.path = m.fd ? MemoryPath::mapped : MemoryPath::foreign;
  m.card.access = memory.access;
  m.card.index = slot;
  m.card.generation = m.generation;
  m.card.bytes = memory.bytes;
  m.card.offset = m.fd ? memory.shared_offset : 0;
  m.card.address = m.fd ? 0 : address;
  const Token random = random_token();
  std::memcpy(&m.card.nonce, random.data(), sizeof(m.card.nonce));
  return MemoryId{(std::uint64_t{m.generation} << 32) | (slot + 1U)};
}

LocalMemory* MemoryTable::find(MemoryId id) {
  LocalMemory* const m = live_at(slot_of(id));
  return m != nullptr && m->generation == id.value >> 32 ? m : nullptr;
}

void MemoryTable::remove(MemoryId id) {
  LocalMemory& m = at(id);
  m.live = false;
  m.fd.reset();
  free_.push_back(slot_of(id));
}

}  // namespace kvl::shm
