// PageOp: the unit of movement. A strided run is one op, however many pieces it has.
#pragma once

#include <cstdint>

namespace kvl {

// `count` pieces of `bytes` each: piece i is read from local_offset + i * local_stride of the local
// region and written to remote_offset + i * remote_stride of the remote one (Direction::write), or
// the other way round (Direction::read). count = 1 is the plain case; strides are then ignored.
//
// Regions are indices into the two region tables of the request that carries the op, so that one
// list of ops serves every rail: each rail has its own ids for the same memory.
//
// Pieces of one op, and ops of one request, must not overlap at their destination. Bytes are
// addressed linearly by position() = piece * bytes + offset in the piece: a request may be cut at
// any such position.
struct PageOp {
  std::uint32_t local_region = 0;
  std::uint32_t remote_region = 0;
  std::uint64_t local_offset = 0;
  std::uint64_t remote_offset = 0;
  std::uint32_t bytes = 0;  // of one piece; > 0
  std::uint32_t count = 1;  // > 0
  std::uint64_t local_stride = 0;
  std::uint64_t remote_stride = 0;

  constexpr std::uint64_t total_bytes() const { return std::uint64_t{bytes} * count; }
  friend bool operator==(const PageOp&, const PageOp&) = default;
};
static_assert(sizeof(PageOp) == 48);

}  // namespace kvl
