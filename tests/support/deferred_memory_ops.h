// A software twin of a device: memory that the CPU cannot touch, and copies that complete late.
//
// Lends transports the shape of GPU memory on a machine without one. DeviceMemory is of kind cuda
// and mapped without any permission at its address: a memcpy crashes and a system call answers
// EFAULT, so whoever forgets MemoryOps is found out. DeferredMemoryOps copies through a second
// mapping, `polls_until_done` polls after copy(); until then the destination holds poison, and a
// source that changes or a destination that somebody else writes counts as a violation.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "kvl/memory.h"

namespace kvl::test {

// Pretended device memory. data() is what is registered; shadow() is for the test's own eyes.
// Thread-safe to open and close; must outlive the copies that use it.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::uint64_t bytes) {
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    bytes_ = (bytes + page - 1) / page * page;
    const int fd = ::memfd_create("device-twin", MFD_CLOEXEC);
    void* data = MAP_FAILED;
    void* shadow = MAP_FAILED;
    if (fd >= 0 && ::ftruncate(fd, static_cast<off_t>(bytes_)) == 0) {
      data = ::mmap(nullptr, bytes_, PROT_NONE, MAP_SHARED, fd, 0);
      shadow = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    fd_ = fd;
    if (data == MAP_FAILED || shadow == MAP_FAILED) std::abort();
    data_ = static_cast<std::byte*>(data);
    shadow_ = static_cast<std::byte*>(shadow);
    const std::lock_guard<std::mutex> lock(registry().mutex);
    registry().all.push_back(this);
  }
  ~DeviceMemory() {
    {
      const std::lock_guard<std::mutex> lock(registry().mutex);
      std::erase(registry().all, this);
    }
    ::munmap(data_, bytes_);
    ::munmap(shadow_, bytes_);
    ::close(fd_);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  std::byte* data() const { return data_; }
  std::byte* shadow() const { return shadow_; }
  std::uint64_t bytes() const { return bytes_; }
  // In the place of a dmabuf, for a pretended NIC.
  int dmabuf() const { return fd_; }
  Memory memory(Access access = Access::local) const {
    return {data_, bytes_, MemoryKind::cuda, 0, access, -1, 0};
  }

  // Where the twin may touch what `address` names: itself unless it lies in a DeviceMemory.
  static std::byte* reachable(const void* address) {
    auto* const p = static_cast<std::byte*>(const_cast<void*>(address));
    const std::lock_guard<std::mutex> lock(registry().mutex);
    for (const DeviceMemory* memory : registry().all) {
      if (p >= memory->data_ && p < memory->data_ + memory->bytes_) {
        return memory->shadow_ + (p - memory->data_);
      }
    }
    return p;
  }

 private:
  struct Registry {
    std::mutex mutex;
    std::vector<DeviceMemory*> all;
  };
  static Registry& registry() {
    static Registry& instance = *new Registry;
    return instance;
  }
  std::byte* data_ = nullptr;
  std::byte* shadow_ = nullptr;
  std::uint64_t bytes_ = 0;
  int fd_ = -1;
};

struct DeferredMemoryOpsOptions {
  std::uint32_t polls_until_done = 3;
  std::uint32_t copies_max = 4;  // copy() answers exhausted beyond
};

class DeferredMemoryOps final : public MemoryOps {
 public:
  static constexpr std::byte kPoison{0xDB};

  explicit DeferredMemoryOps(DeferredMemoryOpsOptions options = {}) : options_(options) {}
  ~DeferredMemoryOps() override {
    EXPECT_TRUE(copies_.empty()) << "destroyed with copies under way: a Link was not quiescent";
    EXPECT_EQ(violations_, 0U) << "memory was touched while a copy was under way";
  }

  bool direct(MemoryKind kind) const override { return kind == MemoryKind::host; }

  Result<CopyTicket> copy(std::span<const CopyPiece> pieces) override {
    if (copies_.size() >= options_.copies_max) {
      ++exhausted_;
      return Status{Code::exhausted, "deferred copies under way"};
    }
    Copy& copy = copies_.emplace_back();
    copy.ticket = ++last_ticket_;
    copy.polls_left = options_.polls_until_done;
    for (const CopyPiece& piece : pieces) {
      Piece& p = copy.pieces.emplace_back();
      p.to = DeviceMemory::reachable(piece.to);
      p.from = DeviceMemory::reachable(piece.from);
      p.snapshot.assign(p.from, p.from + piece.bytes);
      std::memset(p.to, static_cast<int>(kPoison), piece.bytes);
      bytes_ += piece.bytes;
    }
    return CopyTicket{copy.ticket};
  }

  void poll() override {
    for (Copy& copy : copies_) {
      if (copy.polls_left > 0) --copy.polls_left;
    }
    while (!copies_.empty() && copies_.front().polls_left == 0) {
      for (const Piece& piece : copies_.front().pieces) finish(piece);
      done_ = copies_.front().ticket;
      copies_.pop_front();
    }
  }

  // Copies complete in the order of their start.
  bool done(CopyTicket ticket) override { return ticket.value <= done_; }

  std::uint64_t violations() const { return violations_; }
  std::uint64_t bytes_copied() const { return bytes_; }
  std::uint64_t times_exhausted() const { return exhausted_; }

 private:
  struct Piece {
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    std::vector<std::byte> snapshot;  // of the source when the copy began
  };
  struct Copy {
    std::uint64_t ticket = 0;
    std::uint32_t polls_left = 0;
    std::vector<Piece> pieces;
  };

  void finish(const Piece& piece) {
    const std::size_t bytes = piece.snapshot.size();
    if (std::memcmp(piece.from, piece.snapshot.data(), bytes) != 0) ++violations_;
    for (std::size_t i = 0; i < bytes; ++i) {
      if (piece.to[i] != kPoison) {
        ++violations_;
        break;
      }
    }
    std::memcpy(piece.to, piece.snapshot.data(), bytes);
  }

  DeferredMemoryOpsOptions options_;
  std::deque<Copy> copies_;
  std::uint64_t last_ticket_ = 0, done_ = 0;
  std::uint64_t violations_ = 0, bytes_ = 0, exhausted_ = 0;
};

}  // namespace kvl::test
