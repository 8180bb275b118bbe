// Which bytes a row of the benchmark moves: a pure function from a few numbers to page runs, so
// that both processes and every baseline work on the same list.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvl/page_op.h"
#include "kvl/status.h"
#include "kvl/transport.h"
#include "tools/bench/pattern.h"

namespace kvl::bench {

struct WorkloadSpec {
  std::uint64_t pages = 1024;  // pieces moved per transfer
  std::uint64_t page_bytes = 4096;
  std::uint64_t run_pieces = 1;    // pages of one strided run
  std::uint64_t local_stride = 0;  // between the pages of a run; 0: page_bytes
  std::uint64_t remote_stride = 0;
  std::uint64_t gap_bytes = 0;            // guard between runs, on top of those at both ends
  std::uint64_t arena_bytes = 256 << 20;  // at least; several transfers rotate through it
  std::uint64_t seed = 1;                 // of the two page orders
  bool contiguous = false;                // pages in order of address on both sides

  std::uint64_t transfer_bytes() const { return pages * page_bytes; }
  friend bool operator==(const WorkloadSpec&, const WorkloadSpec&) = default;
};

// Bounds of what can be asked for; a server uses them against strangers.
inline constexpr std::uint64_t kArenaBytesMax = std::uint64_t{64} << 30;
inline constexpr std::uint64_t kPagesMax = 4'000'000;
// Fails with a sentence about the first thing that is wrong.
Status validate(const WorkloadSpec& spec);

// The runs of every transfer that fits into the arena, one after the other: transfer t moves
// ops_of(t). About one run's place in nine is left unused, as a guard among the pages.
class Workload {
 public:
  explicit Workload(const WorkloadSpec& spec);  // a valid one

  const WorkloadSpec& spec() const { return spec_; }
  std::uint64_t local_bytes() const { return local_bytes_; }    // the two arenas,
  std::uint64_t remote_bytes() const { return remote_bytes_; }  // guards included
  std::size_t transfers() const { return ops_.size() / runs_; }
  std::size_t runs_per_transfer() const { return runs_; }
  std::span<const PageOp> ops_of(std::size_t transfer) const {
    return std::span(ops_).subspan(transfer % transfers() * runs_, runs_);
  }
  // What the first `transfers` transfers put into the destination's arena.
  std::vector<MovedPiece> moved(Direction direction, std::size_t transfers) const;

 private:
  WorkloadSpec spec_;
  std::size_t runs_ = 0;
  std::uint64_t local_bytes_ = 0;
  std::uint64_t remote_bytes_ = 0;
  std::vector<PageOp> ops_;
};

// "4096", "4k", "1m", "2g"; powers of 1024. invalid_argument for anything else.
Result<std::uint64_t> parse_size(std::string_view text);
// Comma list of them.
Result<std::vector<std::uint64_t>> parse_sizes(std::string_view text);

}  // namespace kvl::bench
