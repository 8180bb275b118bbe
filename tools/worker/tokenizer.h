// The byte-level tokenizer: a token is a byte, or one of two marks.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvl::worker {

inline constexpr std::int32_t kBos = 256;
inline constexpr std::int32_t kEos = 257;
inline constexpr std::uint32_t kVocabulary = 258;

// BOS and the bytes of the text.
std::vector<std::int32_t> encode_text(std::string_view text);

// The bytes of the tokens, marks left out; what is not UTF-8 becomes U+FFFD, so that the result may
// stand in JSON.
std::string decode_tokens(std::span<const std::int32_t> tokens);

}  // namespace kvl::worker
