// The metadata of a handoff's commit: the first token, and when prefill was done with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "worker/request.h"

namespace kvl::worker {

struct FirstToken {
  OutputToken token;
  std::int64_t wall_ns = 0;  // CLOCK_REALTIME of the prefill worker when its compute ended
};

// Bytes, little-endian: 0 version (u32, 1), 4 token (i32), 8 log-probability (f32), 12 zero (u32),
// 16 logits digest (u64), 24 wall clock (i64, ns). 32 in all.
std::vector<std::byte> encode_metadata(const OutputToken& token);
// Nothing for bytes that are not that.
std::optional<FirstToken> decode_metadata(std::span<const std::byte> bytes);

std::int64_t wall_clock_ns();

}  // namespace kvl::worker
