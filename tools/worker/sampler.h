// From logits to the next token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvl/status.h"

namespace kvl::worker {

struct SamplingParams {
  std::uint32_t max_new_tokens = 128;
  float temperature = 0.0F;  // 0: the most likely token
  float top_p = 1.0F;        // (0, 1]
  std::uint32_t top_k = 0;   // 0: all
  std::uint64_t seed = 0;
  bool ignore_eos = false;
};

struct Sampled {
  std::int32_t token = 0;
  float logprob = 0.0F;  // natural logarithm, of the untempered distribution
};

// `index` counts the output tokens of the request from 0: the draw depends on (seed, index) only,
// so that it comes out the same whichever worker makes it. Ties go to the lower token.
Sampled sample(std::span<const float> logits, const SamplingParams& params, std::uint32_t index);

// FNV-1a over the bits of the logits: equal digests, equal logits.
std::uint64_t digest(std::span<const float> logits);

}  // namespace kvl::worker
