// Control pages: creation, hostile mapping, the words that shut memory.
#include "transport/shm/shm_outbox.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <new>

#ifndef F_SEAL_FUTURE_WRITE  // Linux 5.1
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace kvl::shm {

void Mapping::reset() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
}

Result<Mapping> map_sealed(int fd, std::uint64_t offset, std::uint64_t bytes, bool writable) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return Status{Code::permission, "shared memory is not a sealed memfd"};
  }
  struct statfs filesystem {};
  struct stat info {};
  if (::fstatfs(fd, &filesystem) != 0 || ::fstat(fd, &info) != 0 ||
      filesystem.f_type != TMPFS_MAGIC) {
    // Huge pages are refused too: a fault there can end in SIGBUS when the pool is empty.
    return Status{Code::permission, "shared memory is not an ordinary memfd"};
  }
  const auto size = static_cast<std::uint64_t>(info.st_size);
  if (bytes == 0 || offset > size || bytes > size - offset || (offset & 4095U) != 0) {
    return Status{Code::permission, "shared memory is shorter than its card says"};
  }
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* const data = ::mmap(nullptr, bytes, protection, MAP_SHARED, fd, static_cast<off_t>(offset));
  if (data == MAP_FAILED) return Status{Code::exhausted, "map the peer's memory", errno};
  ::madvise(data, bytes, MADV_DONTFORK);  // a child of ours has no business with it
  ::madvise(data, bytes, MADV_HUGEPAGE);  // helps where shmem_enabled is advise
  return Mapping(static_cast<std::byte*>(data), bytes);
}

Result<Outbox> Outbox::open() {
  Outbox box;
  box.fd_.reset(::memfd_create("kvlane-outbox", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!box.fd_) return Status{Code::exhausted, "memfd_create for an outbox", errno};
  const int fd = box.fd_.get();
  if (::ftruncate(fd, sizeof(OutboxLayout)) != 0) {
    return Status{Code::exhausted, "size an outbox", errno};
  }
  void* const data =
      ::mmap(nullptr, sizeof(OutboxLayout), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return Status{Code::exhausted, "map an outbox", errno};
  ::madvise(data, sizeof(OutboxLayout), MADV_DONTFORK);
  box.mapping_ = Mapping(static_cast<std::byte*>(data), sizeof(OutboxLayout));
  // The file is all zeros, which is the empty outbox; only the head is written, so that an idle
  // pair costs one page.
  OutboxLayout& page = box.page();
  page.magic = kOutboxMagic;
  page.version = kWireVersion;
  page.bytes = sizeof(OutboxLayout);
  page.note_slots = kNoteSlots;
  page.memories = kMemoriesMax;
  page.gates = kGates;
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return Status{Code::unavailable, "seal an outbox", errno};
  }
  // Our own mapping stays writable; an older kernel refuses this seal and loses only that.
  (void)::fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
  return box;
}

Result<OutboxView> OutboxView::open(int fd) {
  Result<Mapping> mapping = map_sealed(fd, 0, sizeof(OutboxLayout), false);
  if (!mapping.ok()) return mapping.status();
  OutboxView view;
  view.mapping_ = std::move(mapping).value();
  const OutboxLayout& page = view.page();
  if (page.magic != kOutboxMagic || page.version != kWireVersion ||
      page.bytes != sizeof(OutboxLayout) || page.note_slots != kNoteSlots ||
      page.memories != kMemoriesMax || page.gates != kGates) {
    return Status{Code::invalid_argument, "not an outbox of this version"};
  }
  return view;
}

bool OutboxView::touches(std::uint32_t memory) const {
  for (const auto& gate : page().touching) {
    if (gate.load(std::memory_order_seq_cst) == memory + 1) return true;
  }
  return false;
}

bool OutboxView::touches_any() const {
  for (const auto& gate : page().touching) {
    if (gate.load(std::memory_order_seq_cst) != 0) return true;
  }
  return false;
}

Entry enter(Outbox& own, const OutboxView& peer, std::uint32_t gate, std::uint32_t memory,
            std::uint32_t generation) {
  own.page().touching[gate].store(memory + 1, std::memory_order_seq_cst);
  const std::uint32_t valid = peer.page().memories_valid[memory].load(std::memory_order_seq_cst);
  if (peer.closed()) {
    leave(own, gate);
    return Entry::closed;
  }
  if (valid != generation) {
    leave(own, gate);
    return Entry::withdrawn;
  }
  return Entry::open;
}

}  // namespace kvl::shm
