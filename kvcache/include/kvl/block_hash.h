// Prefix-chained block hashes: the hash of a block of tokens covers all tokens before it, so equal
// hashes mean equal prefixes. Bit for bit those of the engines, so that their cache events and
// their stores can be understood:
//
//   sglang            SHA-256(prior digest (32 bytes; absent for the first block) ‖ token ids, each
//                     u32 little-endian). A block with an id above 2^32 - 1 is
//                     SHA-256(prior ‖ 0xFF ‖ ids, each u64 little-endian).
//   vllm_sha256_cbor  SHA-256(canonical CBOR of [parent digest, [token ids], null]); the parent of
//                     the first block is NONE_HASH = SHA-256(canonical CBOR of the seed as text).
//                     The seed is PYTHONHASHSEED of the engine's environment, or "vllm-none-hash".
//                     No extra keys (LoRA, multimodal, cache salt).
//
// Only full blocks have a hash.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/status.h"

namespace kvl {

struct BlockHash {
  std::array<std::uint8_t, 32> bytes{};

  std::string hex() const;  // 64 lower-case digits
  // 64 bits as vLLM publishes them in events: the last 8 bytes, big-endian.
  std::uint64_t vllm_event_id() const;
  // 64 bits as SGLang publishes them in events: the first 8 bytes, big-endian, as signed.
  std::int64_t sglang_event_id() const;

  friend bool operator==(const BlockHash&, const BlockHash&) = default;
  friend auto operator<=>(const BlockHash&, const BlockHash&) = default;
};
Result<BlockHash> parse_block_hash(std::string_view hex);  // invalid_argument

enum class HashScheme : std::uint8_t { sglang, vllm_sha256_cbor };

struct ChainHasherOptions {
  HashScheme scheme = HashScheme::sglang;
  std::uint32_t block_tokens = 64;
  std::string_view vllm_seed = "vllm-none-hash";
  // Go on after this block instead of starting at the first token.
  std::optional<BlockHash> parent;
};

// Takes tokens as they come, gives a hash for each block that they complete. One thread.
class ChainHasher {
 public:
  // invalid_argument: block_tokens 0 or above 2^20.
  static Result<ChainHasher> open(const ChainHasherOptions& options);
  ~ChainHasher();
  ChainHasher(ChainHasher&&) noexcept;
  ChainHasher& operator=(ChainHasher&&) noexcept;

  // Appends the hashes of completed blocks to `out`. invalid_argument (an id above 2^63 - 1): no
  // token of this call is taken. internal: the crypto library failed.
  Status append(std::span<const std::uint32_t> tokens, std::vector<BlockHash>& out);
  Status append(std::span<const std::uint64_t> tokens, std::vector<BlockHash>& out);

  // Tokens taken that do not fill a block yet.
  std::uint32_t pending_tokens() const;

 private:
  struct State;
  explicit ChainHasher(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// All full blocks of a prompt.
Result<std::vector<BlockHash>> hash_blocks(const ChainHasherOptions& options,
                                           std::span<const std::uint32_t> tokens);

}  // namespace kvl

// The bytes of a digest are as good as random: any eight of them are a hash.
template <>
struct std::hash<kvl::BlockHash> {
  std::size_t operator()(const kvl::BlockHash& block) const noexcept {
    std::size_t value = 0;
    for (std::size_t i = 0; i < sizeof(value); ++i) value = value << 8 | block.bytes[i];
    return value;
  }
};
