// From ops to runs to vectors. Pure: values in, values out; the unit of both sending and
// scattering.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvl/memory.h"
#include "kvl/page_op.h"

namespace kvl::tcp {

// Part of an op that is cut at pieces, or a part of one piece.
struct Run {
  std::uint32_t local_region = 0, remote_region = 0;
  std::uint64_t local_offset = 0, remote_offset = 0;
  std::uint64_t local_stride = 0, remote_stride = 0;
  std::uint32_t bytes = 0, count = 0;
};

// Walks positions [begin, end) of a list of ops (as in Batch) and cuts frames out of it. Two
// cursors over the same ops with the same limits cut the same frames.
class RunCursor {
 public:
  RunCursor() = default;
  RunCursor(std::span<const PageOp> ops, std::uint64_t begin, std::uint64_t end)
      : ops_(ops), end_(end), at_(begin) {}

  bool done() const { return op_ == ops_.size(); }
  // The next run, of at most `bytes_max` bytes. A piece is cut only when `may_cut`; otherwise false
  // is returned when the next piece does not fit. Requires !done().
  bool next(std::uint64_t bytes_max, bool may_cut, Run& run);

 private:
  std::span<const PageOp> ops_;
  std::uint64_t end_ = 0;
  std::size_t op_ = 0;
  std::uint64_t at_ = 0;
};

// A run in memory of this process. `at` null: nowhere; its bytes are dropped (received) or zeros
// (sent), because the memory is not, or no longer, there.
struct RunView {
  std::byte* at = nullptr;
  std::uint64_t stride = 0;
  std::uint32_t bytes = 0;
  std::uint32_t count = 0;
  std::uint64_t memory = 0;  // the id that `at` came from
};
static_assert(sizeof(RunView) == 32);

// count pieces within [0, size), without overflow.
bool run_fits(std::uint64_t offset, std::uint64_t stride, std::uint32_t bytes, std::uint32_t count,
              std::uint64_t size);

// Shared by all: where bytes without a place go to, and zeros come from.
inline constexpr std::size_t kScratchBytes = 64 << 10;

// The data of one frame as a list of runs, and how far it has been turned into vectors. The views
// lie in an array or in a ring of 2^n (`mask`), from `first` on.
class RunList {
 public:
  RunList() = default;
  RunList(RunView* views, std::uint32_t first, std::uint32_t mask, std::uint32_t count)
      : views_(views), first_(first), mask_(mask), count_(count) {}

  RunView& view(std::uint32_t i) { return views_[(first_ + i) & mask_]; }
  std::uint32_t count() const { return count_; }
  std::uint32_t run() const { return run_; }  // the one that the position is in
  std::uint64_t position() const { return position_; }
  bool done() const { return run_ == count_; }

  // Appends vectors for the next bytes, at most `max` vectors and `bytes_max` bytes; neighbours in
  // memory share one. Returns the number of vectors. `scratch` stands in for views without a place.
  std::size_t fill(iovec* out, std::size_t max, std::uint64_t bytes_max, std::byte* scratch);
  // The same walk as copies from `staging` to the runs, or from the runs to `staging`; views
  // without a place are skipped (or, outbound, left as they are). `bytes`: how far the walk went.
  std::size_t fill_copies(CopyPiece* out, std::size_t max, std::uint64_t bytes_max,
                          std::byte* staging, bool to_runs, std::uint64_t& bytes);
  // Moves to a byte position of the list.
  void seek(std::uint64_t position);

 private:
  void advance(const RunView& view, std::uint64_t bytes);

  RunView* views_ = nullptr;
  std::uint32_t first_ = 0, mask_ = ~0U, count_ = 0;
  std::uint32_t run_ = 0;
  std::uint32_t piece_ = 0;   // of the run
  std::uint32_t within_ = 0;  // bytes of the piece that are done
  std::uint64_t position_ = 0;
};

}  // namespace kvl::tcp
