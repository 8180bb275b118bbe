// One pass over a request's JSON body: checks that it is JSON and finds what routing needs. The
// body is never rebuilt, so fields that nobody here knows reach the worker as the client wrote
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace kvl::http {

struct BodyScan {
  const char* error = nullptr;  // why the body is not a JSON object; null: it is one
  std::size_t error_offset = 0;

  std::size_t last_brace = 0;  // offset of the object's closing brace: new fields go before it
  bool has_fields = false;     // a new field needs a comma
  bool stream = false;
  // Sequences the request asks for: prompts in `prompt`, `text` or `input_ids` (a list of token ids
  // is one prompt), times `n` at the top or in `sampling_params`. At least 1; each factor is cut at
  // kFactorMax.
  std::uint32_t prompts = 1;
  std::uint32_t n = 1;
  std::string_view rid;  // the value as written: a quoted string or a list; "" when absent
  // The value of the last of `prompt`, `text`, `input_ids` and `messages`, as written; "" when
  // there is none. Tokens where it is one list of ids; otherwise 0.
  std::string_view prompt;
  std::uint64_t prompt_tokens = 0;
  // The first top-level key that would name a transfer session or a data-parallel rank, which are
  // the router's to choose; "" when there is none.
  std::string session_key;

  static constexpr std::uint32_t kFactorMax = 1 << 20;
};

// Depth is bounded by kJsonDepthMax; UTF-8 inside strings is the worker's to judge. Duplicate keys:
// the last one counts, as in the engines' parsers. The views point into `body`.
constexpr int kJsonDepthMax = 512;
BodyScan scan_body(std::string_view body);

}  // namespace kvl::http
