// Cutting ops into runs, and runs into vectors.
#include "transport/tcp/run_list.h"

#include <algorithm>

namespace kvl::tcp {

bool RunCursor::next(std::uint64_t bytes_max, bool may_cut, Run& run) {
  const PageOp& op = ops_[op_];
  const bool last = op_ + 1 == ops_.size();
  const std::uint64_t op_end = last && end_ != 0 ? end_ : op.total_bytes();
  const std::uint64_t left = op_end - at_;
  std::uint64_t piece = 0, within = at_;
  if (op.count > 1) {
    piece = at_ / op.bytes;
    within = at_ % op.bytes;
  }
  run.local_region = op.local_region;
  run.remote_region = op.remote_region;
  run.local_offset = op.local_offset + piece * op.local_stride + within;
  run.remote_offset = op.remote_offset + piece * op.remote_stride + within;
  run.local_stride = op.local_stride;
  run.remote_stride = op.remote_stride;
  const std::uint64_t whole = within == 0 ? std::min(left, bytes_max) / op.bytes : 0;
  if (whole > 0) {
    run.bytes = op.bytes;
    run.count = static_cast<std::uint32_t>(std::min<std::uint64_t>(whole, op.count));
  } else {
    const std::uint64_t rest = std::min<std::uint64_t>(op.bytes - within, left);
    if (rest > bytes_max && !may_cut) return false;
    run.bytes = static_cast<std::uint32_t>(std::min(rest, bytes_max));
    run.count = 1;
  }
  at_ += std::uint64_t{run.bytes} * run.count;
  if (at_ == op_end) {
    ++op_;
    at_ = 0;
  }
  return true;
}

bool run_fits(std::uint64_t offset, std::uint64_t stride, std::uint32_t bytes, std::uint32_t count,
              std::uint64_t size) {
  std::uint64_t end = bytes;
  if (bytes == 0 || count == 0) return false;
  if (count > 1) {
    std::uint64_t span = 0;
    if (__builtin_mul_overflow(stride, std::uint64_t{count} - 1, &span) ||
        __builtin_add_overflow(end, span, &end)) {
      return false;
    }
  }
  return !__builtin_add_overflow(end, offset, &end) && end <= size;
}

void RunList::advance(const RunView& view, std::uint64_t bytes) {
  position_ += bytes;
  if (bytes < view.bytes - within_) {
    within_ += static_cast<std::uint32_t>(bytes);
    return;
  }
  within_ = 0;
  if (++piece_ == view.count) {
    piece_ = 0;
    ++run_;
  }
}

std::size_t RunList::fill(iovec* out, std::size_t max, std::uint64_t bytes_max,
                          std::byte* scratch) {
  std::size_t used = 0;
  while (run_ < count_ && bytes_max > 0) {
    const RunView& v = view(run_);
    std::uint64_t bytes = std::min<std::uint64_t>(v.bytes - within_, bytes_max);
    std::byte* at = scratch;
    if (v.at != nullptr) {
      at = v.at + std::uint64_t{piece_} * v.stride + within_;
    } else {
      bytes = std::min<std::uint64_t>(bytes, kScratchBytes);
    }
    if (used > 0 && v.at != nullptr &&
        static_cast<std::byte*>(out[used - 1].iov_base) + out[used - 1].iov_len == at) {
      out[used - 1].iov_len += bytes;
    } else if (used < max) {
      out[used++] = {at, bytes};
    } else {
      break;
    }
    bytes_max -= bytes;
    advance(v, bytes);
  }
  return used;
}

std::size_t RunList::fill_copies(CopyPiece* out, std::size_t max, std::uint64_t bytes_max,
                                 std::byte* staging, bool to_runs, std::uint64_t& bytes) {
  std::size_t used = 0;
  bytes = 0;
  while (run_ < count_ && bytes < bytes_max && used < max) {
    const RunView& v = view(run_);
    const std::uint64_t part = std::min<std::uint64_t>(v.bytes - within_, bytes_max - bytes);
    if (v.at != nullptr) {
      std::byte* const at = v.at + std::uint64_t{piece_} * v.stride + within_;
      out[used++] =
          to_runs ? CopyPiece{at, staging + bytes, part} : CopyPiece{staging + bytes, at, part};
    }
    bytes += part;
    advance(v, part);
  }
  return used;
}

void RunList::seek(std::uint64_t position) {
  run_ = piece_ = within_ = 0;
  position_ = position;
  for (; run_ < count_; ++run_) {
    const RunView& v = view(run_);
    const std::uint64_t total = std::uint64_t{v.bytes} * v.count;
    if (position < total) {
      piece_ = static_cast<std::uint32_t>(position / v.bytes);
      within_ = static_cast<std::uint32_t>(position % v.bytes);
      return;
    }
    position -= total;
  }
}

}  // namespace kvl::tcp
