#include "router/prefix/prompt_keys.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvl::router {
namespace {

constexpr double kTextTokensPerByte = 0.25;

}  // namespace

PromptKeys prompt_keys(std::string_view prompt, std::uint64_t tokens) {
  PromptKeys out;
  out.bytes = prompt.size();
  out.tokens_per_byte = tokens == 0
                            ? kTextTokensPerByte
                            : static_cast<double>(tokens) / static_cast<double>(prompt.size());
  std::size_t begin = 0;
  std::uint64_t chain = 0;
  for (std::size_t i = 0; i < kPrefixesMax && prefix_bytes(i) <= prompt.size(); ++i) {
    const std::size_t end = prefix_bytes(i);
    chain = XXH3_64bits_withSeed(prompt.data() + begin, end - begin, chain);
    out.keys.push_back(chain);
    begin = end;
  }
  return out;
}

}  // namespace kvl::router
