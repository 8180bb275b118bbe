// From a spec to runs.
#include "tools/bench/workload.h"

#include <algorithm>
#include <charconv>
#include <numeric>

#include "bench/support/stats.h"

namespace kvl::bench {
namespace {

constexpr std::uint64_t kEdgeBytes = 4096;  // guard at both ends; keeps pages aligned
constexpr std::uint64_t kOpsMax = 1 << 17;  // of a rotation, unless one transfer has more
constexpr std::uint64_t kPageBytesMax = 1 << 30;

std::uint64_t stride_or(std::uint64_t stride, const WorkloadSpec& spec) {
  return stride == 0 ? spec.page_bytes : stride;
}

// Bytes from one run's place to the next.
std::uint64_t pitch(std::uint64_t stride, const WorkloadSpec& spec) {
  return stride_or(stride, spec) * spec.run_pieces + spec.gap_bytes;
}

struct Geometry {
  std::uint64_t runs = 0;  // of one transfer
  std::uint64_t transfers = 0;
  std::uint64_t slots = 0;  // places for runs in each arena
};

Geometry geometry(const WorkloadSpec& spec) {
  Geometry g;
  g.runs = (spec.pages + spec.run_pieces - 1) / spec.run_pieces;
  const std::uint64_t slot_bytes =
      std::max(pitch(spec.local_stride, spec), pitch(spec.remote_stride, spec));
  const std::uint64_t fitting = std::min(spec.arena_bytes / slot_bytes, kOpsMax);
  g.transfers = std::max<std::uint64_t>(1, fitting / g.runs);
  const std::uint64_t used = g.transfers * g.runs;
  g.slots = used + used / 8 + 1;
  return g;
}

std::vector<std::uint32_t> order(std::uint64_t slots, std::uint64_t seed, bool contiguous) {
  std::vector<std::uint32_t> slot(slots);
  std::iota(slot.begin(), slot.end(), 0U);
  if (contiguous) return slot;
  SplitMix random(seed);
  for (std::size_t i = slots; i > 1; --i) std::swap(slot[i - 1], slot[random.below(i)]);
  return slot;
}

}  // namespace

Status validate(const WorkloadSpec& spec) {
  if (spec.pages == 0 || spec.pages > kPagesMax) {
    return {Code::invalid_argument, "--pages must be from 1 to 4000000"};
  }
  if (spec.page_bytes == 0 || spec.page_bytes > kPageBytesMax) {
    return {Code::invalid_argument, "--page-bytes must be from 1 to 1g"};
  }
  if (spec.run_pieces == 0 || spec.run_pieces > spec.pages) {
    return {Code::invalid_argument, "--run-pieces must be from 1 to the number of pages"};
  }
  for (const std::uint64_t stride : {spec.local_stride, spec.remote_stride}) {
    if (stride != 0 && stride < spec.page_bytes) {
      return {Code::invalid_argument, "a stride must be 0 or at least --page-bytes"};
    }
    if (stride > kArenaBytesMax) return {Code::invalid_argument, "the stride is too large"};
  }
  if (spec.gap_bytes > kPageBytesMax || spec.arena_bytes > kArenaBytesMax) {
    return {Code::invalid_argument, "--arena-bytes must be at most 64g"};
  }
  const auto wide = static_cast<unsigned __int128>(
      std::max(stride_or(spec.local_stride, spec), stride_or(spec.remote_stride, spec)));
  if (wide * (spec.pages + spec.run_pieces) +
          static_cast<unsigned __int128>(spec.gap_bytes) * spec.pages >
      kArenaBytesMax / 2) {
    return {Code::invalid_argument, "pages x page-bytes (or stride) is more than 32 GiB"};
  }
  return {};
}

Workload::Workload(const WorkloadSpec& spec) : spec_(spec) {
  const Geometry g = geometry(spec);
  runs_ = g.runs;
  const std::uint64_t local_pitch = pitch(spec.local_stride, spec);
  const std::uint64_t remote_pitch = pitch(spec.remote_stride, spec);
  local_bytes_ = g.slots * local_pitch + 2 * kEdgeBytes;
  remote_bytes_ = g.slots * remote_pitch + 2 * kEdgeBytes;
  const auto local_order = order(g.slots, spec.seed * 2 + 1, spec.contiguous);
  const auto remote_order = order(g.slots, spec.seed * 2 + 2, spec.contiguous);
  ops_.resize(g.transfers * g.runs);
  for (std::size_t i = 0; i < ops_.size(); ++i) {
    const std::uint64_t first_page = i % g.runs * spec.run_pieces;
    PageOp& op = ops_[i];
    op.local_offset = kEdgeBytes + local_order[i] * local_pitch;
    op.remote_offset = kEdgeBytes + remote_order[i] * remote_pitch;
    op.bytes = static_cast<std::uint32_t>(spec.page_bytes);
    op.count = static_cast<std::uint32_t>(std::min(spec.run_pieces, spec.pages - first_page));
    op.local_stride = stride_or(spec.local_stride, spec);
    op.remote_stride = stride_or(spec.remote_stride, spec);
  }
}

std::vector<MovedPiece> Workload::moved(Direction direction, std::size_t transfers) const {
  const std::size_t runs = std::min(transfers * runs_, ops_.size());
  std::vector<MovedPiece> pieces;
  pieces.reserve(runs * spec_.run_pieces);
  for (const PageOp& op : std::span(ops_).first(runs)) {
    for (std::uint64_t i = 0; i < op.count; ++i) {
      const std::uint64_t local = op.local_offset + i * op.local_stride;
      const std::uint64_t remote = op.remote_offset + i * op.remote_stride;
      pieces.push_back(direction == Direction::write ? MovedPiece{remote, local, op.bytes}
                                                     : MovedPiece{local, remote, op.bytes});
    }
  }
  return pieces;
}

Result<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, errc] = std::from_chars(text.data(), end, value);
  if (errc != std::errc{}) return Status{Code::invalid_argument, "not a size; write 4096 or 4k"};
  std::string suffix(rest, end);
  for (char& c : suffix) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  int shift = 0;
  if (suffix == "k" || suffix == "kib") {
    shift = 10;
  } else if (suffix == "m" || suffix == "mib") {
    shift = 20;
  } else if (suffix == "g" || suffix == "gib") {
    shift = 30;
  } else if (!suffix.empty()) {
    return Status{Code::invalid_argument, "unknown suffix; use k, m or g (powers of 1024)"};
  }
  if (value > (UINT64_MAX >> shift)) return Status{Code::invalid_argument, "size too large"};
  return value << shift;
}

Result<std::vector<std::uint64_t>> parse_sizes(std::string_view text) {
  std::vector<std::uint64_t> sizes;
  for (;;) {
    const std::size_t comma = text.find(',');
    const auto size = parse_size(text.substr(0, comma));
    if (!size.ok()) return size.status();
    sizes.push_back(*size);
    if (comma == std::string_view::npos) return sizes;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace kvl::bench
