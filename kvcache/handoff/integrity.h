// Checksums of a handoff's runs: which are taken, what they cost, and what they have found.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/handoff/wire.h"
#include "kvl/page_op.h"

namespace kvl::handoff {

// A number that looks random (splitmix64 by Steele, Lea, Flood).
std::uint64_t mix(std::uint64_t value);

// Checksums of the chosen runs of a segment's plan, of this rank's side of it. Which runs are
// chosen depends on what both sides know: room, segment, run. `bytes` (optional): how much was
// read.
std::vector<std::uint32_t> checksums(std::span<const PageOp> ops,
                                     std::span<const HandoffRegion> regions, CrcChoice choice,
                                     std::uint64_t room, std::uint32_t seq,
                                     std::uint64_t* bytes = nullptr);

// What two ranks settle on: `automatic` follows the other; of two wishes the stronger one; of two
// automatic ones the sparser sample.
CrcChoice agree(CrcChoice a, CrcChoice b);

// How dense automatic checksums may be: all while their time is below kCrcCostMost of the time in
// which the bytes move, a sample beyond. Both are measured as the endpoint works.
inline constexpr double kCrcCostMost = 0.05;

class CrcCost {
 public:
  // `sample`: one run in so many, where all cost too much. `fast`: the CPU has more than tables.
  CrcCost(std::uint32_t sample, bool fast) : sample_(sample), every_(fast ? 1 : sample) {}

  // Transfers in flight: from the first of them to the last, bytes move.
  void began(std::int64_t now_ns);
  void ended(std::int64_t now_ns, std::uint64_t bytes);
  void checked(std::int64_t elapsed_ns, std::uint64_t bytes);

  // One run in so many; 1: all.
  std::uint32_t every() const { return every_; }
  // The part of the moving time that checksums of all runs take; 0: not known yet.
  double cost() const { return cost_; }

 private:
  void decide();

  const std::uint32_t sample_;
  std::uint32_t every_;
  std::uint32_t flying_ = 0;
  std::int64_t since_ns_ = 0;
  // Of late: halved now and then, so that the choice follows the network.
  double moving_ns_ = 0, moved_bytes_ = 0, crc_ns_ = 0, crc_bytes_ = 0;
  double cost_ = 0;
};

}  // namespace kvl::handoff
