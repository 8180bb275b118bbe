// Host memory: memfd-backed buffers and the inline MemoryOps.
#include "kvl/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace kvl {
namespace {

class HostMemoryOps final : public MemoryOps {
 public:
  bool direct(MemoryKind) const override { return true; }
  Result<CopyTicket> copy(std::span<const CopyPiece> pieces) override {
    for (const CopyPiece& piece : pieces) std::memcpy(piece.to, piece.from, piece.bytes);
    return CopyTicket{0};
  }
  void poll() override {}
  bool done(CopyTicket) override { return true; }
};

}  // namespace

std::unique_ptr<MemoryOps> make_host_memory_ops() { return std::make_unique<HostMemoryOps>(); }

Result<std::unique_ptr<SharedBuffer>> SharedBuffer::open(std::uint64_t bytes, const char* name) {
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  if (bytes == 0 || bytes > (std::uint64_t{1} << 50)) {
    return Status{Code::invalid_argument, "shared buffer size"};
  }
  bytes = (bytes + page - 1) / page * page;
  const int fd = ::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return Status{Code::exhausted, "memfd_create", errno};
  void* data = MAP_FAILED;
  // Sealed at its size, for good: who maps it cannot be killed by SIGBUS when somebody truncates.
  if (::ftruncate(fd, static_cast<off_t>(bytes)) == 0 &&
      ::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0) {
    data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  if (data == MAP_FAILED) {
    const int error = errno;
    ::close(fd);
    return Status{Code::exhausted, "map shared buffer; less memory is free than asked", error};
  }
  // Fewer TLB misses where /sys/kernel/mm/transparent_hugepage/shmem_enabled is advise.
  ::madvise(data, bytes, MADV_HUGEPAGE);
  return std::unique_ptr<SharedBuffer>(new SharedBuffer(static_cast<std::byte*>(data), bytes, fd));
}

SharedBuffer::~SharedBuffer() {
  ::munmap(data_, bytes_);
  ::close(fd_);
}

}  // namespace kvl
