// What the ranks of a worker are asked to compute, and what they answer. Plain values: they also
// travel to ranks in other processes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kvl/status.h"

namespace kvl::worker {

// Consecutive tokens of one sequence. Pages hold the sequence from its first token on; they reach
// at least to the last token here and are the same ids on every rank.
struct Segment {
  std::vector<std::int32_t> tokens;
  std::uint32_t position = 0;  // of tokens[0] in the sequence
  std::vector<std::uint32_t> pages;
  bool logits = false;   // of the last token are wanted
  bool handoff = false;  // `room` is being handed off: announce each layer
  std::uint64_t room = 0;
};
using Batch = std::vector<Segment>;

// One row for each segment that wants logits, in order.
using Logits = std::vector<std::vector<float>>;

// What stands in for the KV of a prompt where nothing is computed (--kv-only): token t belongs to
// block t / block_tokens, whose content follows from the hash of the chain of blocks up to it.
struct KvContent {
  std::uint32_t block_tokens = 512;
  std::vector<std::uint64_t> chain;  // one hash per block
};

// Tokens [first_token, end_token) of a sequence whose pages begin at token 0.
struct KvRange {
  KvContent content;
  std::vector<std::uint32_t> pages;
  std::uint32_t first_token = 0;
  std::uint32_t end_token = 0;
  bool handoff = false;  // as in Segment
  std::uint64_t room = 0;
};

struct ComputeJob {
  enum class Kind : std::uint8_t {
    forward,  // the transformer over `batch`
    fill,     // write the content of `kv` into its pages
    verify,   // compare every byte of `kv`
    damage,   // flip one bit of the first page of `kv` on every rank: a control for what checks
  };
  std::uint64_t id = 0;
  Kind kind = Kind::forward;
  Batch batch;
  KvRange kv;
};

// One rank's answer to a job.
struct RankOutput {
  std::uint64_t job = 0;
  std::uint32_t rank = 0;
  Code code = Code::ok;
  std::uint32_t vocab_first = 0;           // of the columns below
  Logits logits;                           // last stage only
  std::vector<std::uint32_t> wrong_pages;  // verify: indices into kv.pages, ascending
};

// Called by a rank's thread as soon as the KV of a layer (of the whole model) is in place for the
// first `tokens` tokens of the room. May be empty.
using LayerReady =
    std::function<void(std::uint64_t room, std::uint32_t layer, std::uint64_t tokens)>;

}  // namespace kvl::worker
