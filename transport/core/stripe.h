// Cuts a list of runs into pieces that rails take one at a time. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvl/page_op.h"

namespace kvl {

// ops [op_begin, op_begin + op_count), positions [begin, end) as in Batch (end 0: whole last op).
struct PieceRange {
  std::uint32_t op_begin = 0, op_count = 0;
  std::uint64_t begin = 0, end = 0;
  std::uint64_t bytes = 0;
};

struct StripeLimits {
  std::uint64_t piece_bytes = 4u << 20;  // > 0; a piece may exceed it by less than its half
  std::uint32_t piece_runs = 256;        // > 0
};

// Every byte of every op is in exactly one piece; pieces are in order. A page of a strided run that
// fits into a piece is never cut: one rail carries it. Ops must have bytes and count > 0. Appends
// to `pieces`.
void cut(std::span<const PageOp> ops, const StripeLimits& limits, std::vector<PieceRange>& pieces);

}  // namespace kvl
