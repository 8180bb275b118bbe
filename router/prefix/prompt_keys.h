// A prompt's prefixes as keys: equal keys, equal prompts up to there. Growing pieces at first, so
// that a short system prompt is seen; then steps of 4 KiB, which is what an index pays for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace kvl::router {

// Where prefix i ends, in bytes of the prompt as the client wrote it: 512, 1 KiB, 2 KiB, 4 KiB,
// then 4 KiB each.
constexpr std::size_t prefix_bytes(std::size_t i) {
  return i < 4 ? std::size_t{512} << i : (i - 2) * (std::size_t{4} << 10);
}
constexpr std::size_t kPrefixesMax = 1 << 10;  // what is longer than 4 MiB is told apart no more

struct PromptKeys {
  std::vector<std::uint64_t> keys;  // of each whole prefix, a chain of XXH3
  std::uint64_t bytes = 0;
  double tokens_per_byte = 0;  // an estimate

  std::uint64_t tokens() const { return tokens_of(bytes); }
  std::uint64_t tokens_of(std::uint64_t part) const {
    return static_cast<std::uint64_t>(static_cast<double>(part) * tokens_per_byte);
  }
  // Of the first `depth` prefixes.
  std::uint64_t cached_tokens(std::size_t depth) const {
    return depth == 0 ? 0 : tokens_of(prefix_bytes(depth - 1));
  }
};

// `prompt` is a JSON value; `tokens` how many it has where that is known (a list of ids), or 0:
// text is taken as four bytes a token.
PromptKeys prompt_keys(std::string_view prompt, std::uint64_t tokens);

}  // namespace kvl::router
