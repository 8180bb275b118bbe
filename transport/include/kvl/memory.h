// Memory as transports see it, and the asynchronous operations on memory that a CPU may not touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kvl/status.h"

namespace kvl {

enum class MemoryKind : std::uint8_t { host = 0, cuda = 1 };

// What a peer may do with registered memory. Bits.
enum class Access : std::uint8_t { local = 0, remote_read = 1, remote_write = 2, remote_all = 3 };
constexpr Access operator|(Access a, Access b) {
  return static_cast<Access>(static_cast<std::uint8_t>(a) | static_cast<std::uint8_t>(b));
}
constexpr bool allows(Access granted, Access wanted) {
  return (static_cast<std::uint8_t>(granted) & static_cast<std::uint8_t>(wanted)) ==
         static_cast<std::uint8_t>(wanted);
}

// A range of memory to register. The caller owns it and keeps it mapped until it is removed.
// `shared_fd` names the memfd behind it where the engine allocated it (SharedBuffer): a peer on the
// same host can then map it. Of a GPU's memory: its dmabuf, for RDMA devices. -1: foreign memory.
struct Memory {
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  MemoryKind kind = MemoryKind::host;
  int device = 0;  // CUDA ordinal; 0 for host
  Access access = Access::local;
  int shared_fd = -1;
  std::uint64_t shared_offset = 0;  // of data in shared_fd; a multiple of the page size
};

// Page-aligned host memory behind a memfd, zero-filled on first touch; what an engine should
// allocate its host KV pages from. Freed by the destructor: deregister first.
class SharedBuffer {
 public:
  // exhausted: no memory or no descriptor (errno kept). `name` shows in /proc/PID/maps.
  static Result<std::unique_ptr<SharedBuffer>> open(std::uint64_t bytes,
                                                    const char* name = "kvlane");
  ~SharedBuffer();
  SharedBuffer(const SharedBuffer&) = delete;
  SharedBuffer& operator=(const SharedBuffer&) = delete;

  std::byte* data() const { return data_; }
  std::uint64_t bytes() const { return bytes_; }
  // The Memory to hand to Engine::register_memory.
  Memory memory(Access access) const {
    return {data_, bytes_, MemoryKind::host, 0, access, fd_, 0};
  }

 private:
  SharedBuffer(std::byte* data, std::uint64_t bytes, int fd)
      : data_(data), bytes_(bytes), fd_(fd) {}
  std::byte* data_;
  std::uint64_t bytes_;
  int fd_;
};

struct CopyPiece {
  void* to;
  const void* from;
  std::uint64_t bytes;
};
struct CopyTicket {
  std::uint64_t value = 0;  // 0: was complete on return
};

// Copies between memories of any kind. Implementations: host (inline memcpy, below), a software
// twin that completes late (tests), cuda. One object belongs to one Link and its thread.
class MemoryOps {
 public:
  virtual ~MemoryOps() = default;
  // True: the CPU (and so a socket) may read and write this kind of memory in place. False: bytes
  // must go through copy() to or from host memory.
  virtual bool direct(MemoryKind kind) const = 0;
  // Starts the copies in order. The array may be reused on return; the memory may not until done.
  // exhausted: too many copies under way; poll() and retry, nothing was started.
  virtual Result<CopyTicket> copy(std::span<const CopyPiece> pieces) = 0;
  // Makes progress; bounded work.
  virtual void poll() = 0;
  // All pieces of the ticket are complete and visible to CPU and peers.
  virtual bool done(CopyTicket ticket) = 0;
};

// Every kind is direct; copy() is memcpy and done on return.
std::unique_ptr<MemoryOps> make_host_memory_ops();

}  // namespace kvl
