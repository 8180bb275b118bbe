// Batches in flight: preallocated slots, lists without allocation, and the cursor in a batch.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>

#include "kvl/transport.h"

namespace kvl::shm {

// Walks the bytes of a batch piece by piece. A plain value: copy it to be able to go back.
class Cursor {
 public:
  void start(const Batch& batch) {
    op_ = last_ = nullptr;
    if (batch.ops.empty()) return;
    last_ = &batch.ops.back();
    end_ = batch.end == 0 ? last_->total_bytes() : batch.end;
    enter(batch.ops.data(), batch.begin);
  }
  bool done() const { return op_ == nullptr; }
  const PageOp& op() const { return *op_; }
  // Bytes that lie in one stretch on both sides, and where.
  std::uint64_t stretch() const { return stretch_; }
  std::uint64_t local() const { return local_; }
  std::uint64_t remote() const { return remote_; }
  // n <= stretch()
  void take(std::uint64_t n) {
    local_ += n;
    remote_ += n;
    in_piece_ += n;
    stretch_ -= n;
    left_ -= n;
    if (stretch_ > 0) return;
    if (left_ > 0) {
      local_ += op_->local_stride - in_piece_;
      remote_ += op_->remote_stride - in_piece_;
      in_piece_ = 0;
      stretch_ = std::min<std::uint64_t>(op_->bytes, left_);
    } else if (op_ == last_) {
      op_ = nullptr;
    } else {
      enter(op_ + 1, 0);
    }
  }

 private:
  void enter(const PageOp* op, std::uint64_t from) {
    op_ = op;
    left_ = (op == last_ ? end_ : op->total_bytes()) - from;
    const bool plain =
        op->count == 1 || (op->local_stride == op->bytes && op->remote_stride == op->bytes);
    const std::uint64_t piece = plain ? 0 : from / op->bytes;
    in_piece_ = plain ? from : from % op->bytes;
    stretch_ = plain ? left_ : std::min(op->bytes - in_piece_, left_);
    local_ = op->local_offset + piece * op->local_stride + in_piece_;
    remote_ = op->remote_offset + piece * op->remote_stride + in_piece_;
  }

  const PageOp* op_ = nullptr;
  const PageOp* last_ = nullptr;
  std::uint64_t end_ = 0;       // of the last op
  std::uint64_t left_ = 0;      // of this op
  std::uint64_t stretch_ = 0;   // of this piece (of the whole op where its pieces touch)
  std::uint64_t in_piece_ = 0;  // bytes of this piece already taken
  std::uint64_t local_ = 0, remote_ = 0;
};

inline constexpr std::uint32_t kNoBatch = UINT32_MAX;

struct BatchSlot {
  Batch batch;  // batch.note names `note`
  std::array<std::byte, kNoteBytesMax> note{};
  Cursor cursor;
  std::uint64_t bytes_done = 0;
  std::uint32_t windows = 0;  // asynchronous copies under way
  std::uint32_t next = kNoBatch, previous = kNoBatch;
  Code code = Code::ok;
  bool used = false;
  bool started = false;  // its ReadyToken was seen ready
  bool ending = false;   // no more is moved; `code` is its end
};

struct BatchList {
  std::uint32_t head = kNoBatch, tail = kNoBatch;
  bool empty() const { return head == kNoBatch; }
};

// All batch slots of one Link.
class BatchPool {
 public:
  explicit BatchPool(std::uint32_t size) : size_(size), slots_(new BatchSlot[size]) {
    for (std::uint32_t i = 0; i < size; ++i) push(free_, i);
  }
  BatchSlot& operator[](std::uint32_t i) { return slots_[i]; }
  std::uint32_t size() const { return size_; }
  bool full() const { return free_.empty(); }

  std::uint32_t take() {
    const std::uint32_t i = free_.head;
    erase(free_, i);
    slots_[i] = BatchSlot{};
    slots_[i].used = true;
    return i;
  }
  void give(std::uint32_t i) {
    slots_[i].used = false;
    push(free_, i);
  }
  void push(BatchList& list, std::uint32_t i) {
    slots_[i].previous = list.tail;
    slots_[i].next = kNoBatch;
    (list.tail == kNoBatch ? list.head : slots_[list.tail].next) = i;
    list.tail = i;
  }
  void erase(BatchList& list, std::uint32_t i) {
    BatchSlot& s = slots_[i];
    (s.previous == kNoBatch ? list.head : slots_[s.previous].next) = s.next;
    (s.next == kNoBatch ? list.tail : slots_[s.next].previous) = s.previous;
  }

 private:
  std::uint32_t size_;
  std::unique_ptr<BatchSlot[]> slots_;
  BatchList free_;
};

}  // namespace kvl::shm
