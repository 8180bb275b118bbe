// A request as the scheduler sees it, and what comes back while it runs.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kvl/status.h"
#include "worker/batch.h"
#include "worker/sampler.h"

namespace kvl::worker {

// The transfer session that a router chose.
struct Session {
  std::string host;        // with port: names the prefill instance
  std::int64_t port = -1;  // -1: none given
  std::uint64_t room = 0;
};

struct Request {
  std::string rid;
  std::vector<std::int32_t> tokens;  // the prompt; at least one, unless `content` stands for it
  std::optional<KvContent> content;  // --kv-only workers: the prompt by its blocks
  std::uint32_t content_tokens = 0;
  SamplingParams sampling;
  bool digests = false;            // of the logits behind each output token
  std::optional<Session> session;  // none: prefill and decode here
};

struct OutputToken {
  std::int32_t token = 0;
  float logprob = 0.0F;
  std::uint64_t digest = 0;
  friend bool operator==(const OutputToken&, const OutputToken&) = default;
};

// Known when a request ends. Times in nanoseconds.
struct Figures {
  std::uint32_t prompt_tokens = 0;
  std::uint32_t cached_tokens = 0;  // of the prompt, found in pages of this worker
  std::uint64_t bytes_moved = 0;    // by the handoff, all ranks of this worker
  std::uint32_t pages_moved = 0;
  std::uint32_t pages_verified = 0;  // --kv-only decode: all pages of the prompt
  std::uint32_t pages_wrong = 0;
  std::int64_t waited_ns = 0;   // for admission
  std::int64_t handoff_ns = 0;  // from its opening here to commit
  // From the end of prefill (on its worker's wall clock) to commit here: what the transfer adds to
  // the time to first token. Meaningful where both clocks agree.
  std::int64_t exposed_ns = 0;
};

struct Update {
  std::vector<OutputToken> tokens;  // new ones
  bool done = false;                // the last update
  bool stopped = false;             // done by EOS, not by length
  Status status;                    // done: ok, or why the request failed
  std::string reason;               // for people; may be empty
  bool of_peer = false;             // failed by the other worker of the pair, not by this one
  Figures figures;                  // done
};
// Called by the scheduler's thread; must not block.
using UpdateSink = std::function<void(Update)>;

}  // namespace kvl::worker
