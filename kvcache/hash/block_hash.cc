// Block hashes: the message of a block by scheme, and SHA-256 over it with one reused context.
#include "kvl/block_hash.h"

#include <openssl/evp.h>

#include <algorithm>
#include <utility>

#include "kvcache/hash/cbor.h"

namespace kvl {
namespace {

constexpr std::uint32_t kBlockTokensMax = 1U << 20;
constexpr std::uint8_t kWideTag = 0xFF;

struct MdFree {
  void operator()(EVP_MD* md) const { EVP_MD_free(md); }
};
struct CtxFree {
  void operator()(EVP_MD_CTX* ctx) const { EVP_MD_CTX_free(ctx); }
};

// Looking the algorithm up costs more than hashing a small block, so it is done once.
class Sha256 {
 public:
  Status open() {
    md_.reset(EVP_MD_fetch(nullptr, "SHA256", nullptr));
    ctx_.reset(EVP_MD_CTX_new());
    if (!md_ || !ctx_) return {Code::internal, "hash: SHA-256 is not available"};
    return {};
  }
  Status digest(std::span<const std::uint8_t> message, BlockHash& out) {
    unsigned int bytes = 0;
    if (EVP_DigestInit_ex2(ctx_.get(), md_.get(), nullptr) != 1 ||
        EVP_DigestUpdate(ctx_.get(), message.data(), message.size()) != 1 ||
        EVP_DigestFinal_ex(ctx_.get(), out.bytes.data(), &bytes) != 1 ||
        bytes != out.bytes.size()) {
      return {Code::internal, "hash: SHA-256 failed"};
    }
    return {};
  }

 private:
  std::unique_ptr<EVP_MD, MdFree> md_;
  std::unique_ptr<EVP_MD_CTX, CtxFree> ctx_;
};

void put_le(std::vector<std::uint8_t>& out, std::uint64_t value, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i)
    out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

std::uint64_t big_endian(std::span<const std::uint8_t, 8> bytes) {
  std::uint64_t value = 0;
  for (const std::uint8_t byte : bytes) value = value << 8 | byte;
  return value;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string BlockHash::hex() const {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  text.reserve(64);
  for (const std::uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::uint64_t BlockHash::vllm_event_id() const { return big_endian(std::span(bytes).last<8>()); }

std::int64_t BlockHash::sglang_event_id() const {
  return static_cast<std::int64_t>(big_endian(std::span(bytes).first<8>()));
}

Result<BlockHash> parse_block_hash(std::string_view hex) {
  BlockHash hash;
  if (hex.size() != 2 * hash.bytes.size()) {
    return Status(Code::invalid_argument, "hash: 64 hexadecimal digits are needed");
  }
  for (std::size_t i = 0; i < hash.bytes.size(); ++i) {
    const int high = hex_digit(hex[2 * i]);
    const int low = hex_digit(hex[2 * i + 1]);
    if (high < 0 || low < 0) {
      return Status(Code::invalid_argument, "hash: 64 hexadecimal digits are needed");
    }
    hash.bytes[i] = static_cast<std::uint8_t>(high << 4 | low);
  }
  return hash;
}

struct ChainHasher::State {
  HashScheme scheme = HashScheme::sglang;
  std::uint32_t block_tokens = 0;
  std::optional<BlockHash> parent;
  std::vector<std::uint64_t> pending;
  std::vector<std::uint8_t> message;
  CborWriter cbor;
  Sha256 sha256;

  std::span<const std::uint8_t> sglang_message() {
    message.clear();
    if (parent) message.insert(message.end(), parent->bytes.begin(), parent->bytes.end());
    const bool wide = std::any_of(pending.begin(), pending.end(),
                                  [](std::uint64_t token) { return token > 0xFFFFFFFF; });
    if (wide) message.push_back(kWideTag);
    for (const std::uint64_t token : pending) put_le(message, token, wide ? 8 : 4);
    return message;
  }

  std::span<const std::uint8_t> vllm_message() {
    cbor.clear();
    cbor.array(3);
    cbor.byte_string(parent->bytes);
    cbor.array(pending.size());
    for (const std::uint64_t token : pending) cbor.unsigned_integer(token);
    cbor.null();
    return cbor.view();
  }

  Status finish_block(std::vector<BlockHash>& out) {
    BlockHash hash;
    KVL_TRY(sha256.digest(scheme == HashScheme::sglang ? sglang_message() : vllm_message(), hash));
    parent = hash;
    pending.clear();
    out.push_back(hash);
    return {};
  }

  template <typename Token>
  Status append(std::span<const Token> tokens, std::vector<BlockHash>& out) {
    for (const Token token : tokens) {
      pending.push_back(token);
      if (pending.size() == block_tokens) KVL_TRY(finish_block(out));
    }
    return {};
  }
};

ChainHasher::ChainHasher(std::unique_ptr<State> state) : state_(std::move(state)) {}
ChainHasher::~ChainHasher() = default;
ChainHasher::ChainHasher(ChainHasher&&) noexcept = default;
ChainHasher& ChainHasher::operator=(ChainHasher&&) noexcept = default;

Result<ChainHasher> ChainHasher::open(const ChainHasherOptions& options) {
  if (options.block_tokens == 0 || options.block_tokens > kBlockTokensMax) {
    return Status(Code::invalid_argument, "hash: block_tokens out of range");
  }
  auto state = std::make_unique<State>();
  KVL_TRY(state->sha256.open());
  state->scheme = options.scheme;
  state->block_tokens = options.block_tokens;
  state->parent = options.parent;
  if (options.scheme == HashScheme::vllm_sha256_cbor && !state->parent) {
    state->cbor.text(options.vllm_seed);
    BlockHash none_hash;
    KVL_TRY(state->sha256.digest(state->cbor.view(), none_hash));
    state->parent = none_hash;
  }
  return ChainHasher(std::move(state));
}

Status ChainHasher::append(std::span<const std::uint32_t> tokens, std::vector<BlockHash>& out) {
  return state_->append(tokens, out);
}

Status ChainHasher::append(std::span<const std::uint64_t> tokens, std::vector<BlockHash>& out) {
  if (std::any_of(tokens.begin(), tokens.end(),
                  [](std::uint64_t token) { return token >> 63 != 0; })) {
    return {Code::invalid_argument, "hash: token id above 2^63 - 1"};
  }
  return state_->append(tokens, out);
}

std::uint32_t ChainHasher::pending_tokens() const {
  return static_cast<std::uint32_t>(state_->pending.size());
}

Result<std::vector<BlockHash>> hash_blocks(const ChainHasherOptions& options,
                                           std::span<const std::uint32_t> tokens) {
  Result<ChainHasher> hasher = ChainHasher::open(options);
  if (!hasher) return hasher.status();
  std::vector<BlockHash> out;
  out.reserve(tokens.size() / options.block_tokens);
  KVL_TRY(hasher->append(tokens, out));
  return out;
}

}  // namespace kvl
