// The two control pages of a pair: ours, which we alone write, and our view of the peer's.
//
// Notes are a ring with one writer and one reader. Memory is shut by a pair of words: the initiator
// writes which memory it touches (in its outbox), then looks whether the owner still exports it;
// the owner withdraws it (in its outbox), then looks whether the initiator touches it. Both steps
// are sequentially consistent, so that one of the two sees the other.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "kvl/status.h"
#include "transport/base/unique_fd.h"
#include "transport/shm/shm_wire.h"

namespace kvl::shm {

// A mapping with an owner.
class Mapping {
 public:
  Mapping() = default;
  Mapping(std::byte* data, std::uint64_t bytes) : data_(data), bytes_(bytes) {}
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { reset(); }
  void reset();

  std::byte* data() const { return data_; }
  std::uint64_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  std::byte* data_ = nullptr;
  std::uint64_t bytes_ = 0;
};

// Maps [offset, offset + bytes) of a hostile descriptor. Refuses (permission) what could be cut
// under us: anything but an ordinary memfd that is sealed against shrinking and long enough.
Result<Mapping> map_sealed(int fd, std::uint64_t offset, std::uint64_t bytes, bool writable);

// Ours. Methods belong to the Link's thread, except withdraw(), which any thread may call.
class Outbox {
 public:
  static Result<Outbox> open();

  int fd() const { return fd_.get(); }
  // Once the peer has it: the mapping stays.
  void drop_fd() { fd_.reset(); }
  OutboxLayout& page() { return *reinterpret_cast<OutboxLayout*>(mapping_.data()); }

  void admit(std::uint32_t memory, std::uint32_t generation) {
    page().memories_valid[memory].store(generation, std::memory_order_seq_cst);
  }
  void withdraw(std::uint32_t memory) {
    page().memories_valid[memory].store(0, std::memory_order_seq_cst);
  }
  bool admits(std::uint32_t memory, std::uint32_t generation) {
    return page().memories_valid[memory].load(std::memory_order_relaxed) == generation;
  }
  void close() { page().closed.store(1, std::memory_order_seq_cst); }

 private:
  UniqueFd fd_;
  Mapping mapping_;
};

// The peer's. Every word is read once and believed only after a check.
class OutboxView {
 public:
  static Result<OutboxView> open(int fd);

  const OutboxLayout& page() const {
    return *reinterpret_cast<const OutboxLayout*>(mapping_.data());
  }
  explicit operator bool() const { return static_cast<bool>(mapping_); }

  // After Outbox::withdraw: does the peer touch this memory of ours?
  bool touches(std::uint32_t memory) const;
  // After Outbox::close: does the peer touch any?
  bool touches_any() const;
  bool closed() const { return page().closed.load(std::memory_order_seq_cst) != 0; }

 private:
  Mapping mapping_;
};

// The initiator's side of the pair of words. `gate` < kGates is one under way at a time.
enum class Entry : std::uint8_t { open, withdrawn, closed };
Entry enter(Outbox& own, const OutboxView& peer, std::uint32_t gate, std::uint32_t memory,
            std::uint32_t generation);
inline void leave(Outbox& own, std::uint32_t gate) {
  own.page().touching[gate].store(0, std::memory_order_release);
}

}  // namespace kvl::shm
