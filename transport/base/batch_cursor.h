// A cursor in the bytes of a batch, for transports that move it piece by piece.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kvl/page_op.h"

namespace kvl {

// Walks the bytes of a batch piece by piece. A plain value: copy it to be able to go back.
class BatchCursor {
 public:
  // As of a Batch: `begin` counts in the first op, `end` in the last one; 0: to its end.
  void start(std::span<const PageOp> ops, std::uint64_t begin, std::uint64_t end) {
    op_ = last_ = nullptr;
    if (ops.empty()) return;
    last_ = &ops.back();
    end_ = end == 0 ? last_->total_bytes() : end;
    enter(ops.data(), begin);
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

// Whether `count` pieces of `bytes` lie in [0, size).
inline bool fits(std::uint64_t size, std::uint64_t offset, std::uint64_t stride,
                 std::uint32_t count, std::uint32_t bytes) {
  if (bytes == 0 || count == 0 || offset > size) return false;
  const std::uint64_t room = size - offset;
  if (bytes > room) return false;
  std::uint64_t span = 0;
  return !__builtin_mul_overflow(stride, std::uint64_t{count} - 1, &span) && span <= room - bytes;
}

}  // namespace kvl
