// What one forward pass is asked to do: pieces of several sequences at once.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace kvl::worker {

// Consecutive tokens of one sequence. Pages hold the sequence from its first token on; they reach
// at least to the last token here and are the same ids on every rank.
struct Segment {
  std::vector<std::int32_t> tokens;
  std::uint32_t position = 0;  // of tokens[0] in the sequence
  std::vector<std::uint32_t> pages;
  bool logits = false;  // of the last token are wanted
};
using Batch = std::vector<Segment>;

// One row of `vocab` logits for each segment that wants them, in order.
using Logits = std::vector<std::vector<float>>;

// Called by each rank's thread as soon as the K and V of `layer` (of the whole model) of every
// token of the batch are in its pages. May be empty.
using LayerDone = std::function<void(std::uint32_t rank, std::uint32_t layer)>;

}  // namespace kvl::worker
