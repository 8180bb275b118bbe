// A cursor in the bytes of a batch, for transports that move it piece by piece.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kvl/page_op.h"
#include "kvl/status.h"

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

// Whether the ops of a batch name regions that there are, lie within their memories, and [begin,
// end) within the ops. Once for each change of region: local(index) gives the bytes of a local
// memory, remote(index, bytes) those of a remote one, or why it may not be used.
template <typename Local, typename Remote>
Status check_ops(std::span<const PageOp> ops, std::uint64_t begin, std::uint64_t end,
                 std::size_t locals, std::size_t remotes, Local local, Remote remote) {
  std::uint32_t local_region = UINT32_MAX, remote_region = UINT32_MAX;
  std::uint64_t local_bytes = 0, remote_bytes = 0;
  for (const PageOp& op : ops) {
    if (op.local_region >= locals || op.remote_region >= remotes) {
      return {Code::invalid_argument, "region index of an op"};
    }
    if (op.local_region != local_region) {
      local_region = op.local_region;
      local_bytes = local(local_region);
    }
    if (op.remote_region != remote_region) {
      remote_region = op.remote_region;
      KVL_TRY(remote(remote_region, remote_bytes));
    }
    if (!fits(local_bytes, op.local_offset, op.local_stride, op.count, op.bytes)) {
      return {Code::invalid_argument, "bounds of local memory"};
    }
    if (!fits(remote_bytes, op.remote_offset, op.remote_stride, op.count, op.bytes)) {
      return {Code::invalid_argument, "bounds of remote memory"};
    }
  }
  const std::uint64_t last = ops.back().total_bytes();
  if (end == 0) end = last;
  if (begin >= ops.front().total_bytes() || end > last || (ops.size() == 1 && begin >= end)) {
    return {Code::invalid_argument, "positions of the ops"};
  }
  return {};
}

}  // namespace kvl
