// Checksums of a handoff's runs.
#include "kvcache/handoff/integrity.h"

#include <algorithm>

#include "transport/base/crc32c.h"

namespace kvl::handoff {
namespace {

// The choice waits for so much evidence, and forgets half of it beyond.
constexpr double kMovedLeast = 64e6, kMovedMost = 1e9;
constexpr double kCheckedLeast = 1e6;
// Back to all runs only well below the limit: a choice that flickers explains nothing.
constexpr double kCrcCostBack = 0.8 * kCrcCostMost;

}  // namespace

std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15U;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31);
}

std::vector<std::uint32_t> checksums(std::span<const PageOp> ops,
                                     std::span<const HandoffRegion> regions, CrcChoice choice,
                                     std::uint64_t room, std::uint32_t seq, std::uint64_t* bytes) {
  std::vector<std::uint32_t> crcs;
  if (choice.mode == CrcMode::off) return crcs;
  const std::uint64_t seed = mix(room ^ (std::uint64_t{seq} << 32));
  for (std::size_t i = 0; i < ops.size(); ++i) {
    // The first run of a segment is always checked, so that a sample is never empty.
    if (choice.mode == CrcMode::sampled && i != 0 && mix(seed + i) % choice.sample != 0) continue;
    const PageOp& op = ops[i];
    crcs.push_back(crc32c_strided(regions[op.local_region].data + op.local_offset, op.bytes,
                                  op.count, op.local_stride));
    if (bytes != nullptr) *bytes += op.total_bytes();
  }
  return crcs;
}

CrcChoice agree(CrcChoice a, CrcChoice b) {
  if (a.mode == CrcMode::automatic && b.mode == CrcMode::automatic) {
    const std::uint32_t every = std::max(a.sample, b.sample);
    return every == 1 ? CrcChoice{CrcMode::all, 1} : CrcChoice{CrcMode::sampled, every};
  }
  if (a.mode == CrcMode::automatic) return b;
  if (b.mode == CrcMode::automatic) return a;
  if (a.mode != b.mode) return a.mode > b.mode ? a : b;
  return {a.mode, std::min(a.sample, b.sample)};
}

void CrcCost::began(std::int64_t now_ns) {
  if (flying_++ == 0) since_ns_ = now_ns;
}

void CrcCost::ended(std::int64_t now_ns, std::uint64_t bytes) {
  if (flying_ == 0) return;
  --flying_;
  moving_ns_ += static_cast<double>(now_ns - since_ns_);
  since_ns_ = now_ns;
  moved_bytes_ += static_cast<double>(bytes);
  decide();
}

void CrcCost::checked(std::int64_t elapsed_ns, std::uint64_t bytes) {
  crc_ns_ += static_cast<double>(elapsed_ns);
  crc_bytes_ += static_cast<double>(bytes);
}

void CrcCost::decide() {
  if (moved_bytes_ < kMovedLeast || crc_bytes_ < kCheckedLeast || moving_ns_ <= 0) return;
  cost_ = (crc_ns_ / crc_bytes_) / (moving_ns_ / moved_bytes_);
  if (cost_ > kCrcCostMost) every_ = sample_;
  if (cost_ < kCrcCostBack) every_ = 1;
  if (moved_bytes_ < kMovedMost) return;
  for (double* const sum : {&moving_ns_, &moved_bytes_, &crc_ns_, &crc_bytes_}) *sum /= 2;
}

}  // namespace kvl::handoff
