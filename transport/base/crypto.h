// The few cryptographic operations that kvlane needs, over OpenSSL: HMAC-SHA-256, key derivation,
// X25519 and AES as an AEAD with a counter. Nothing here logs or returns an error that tells a
// secret.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>

struct evp_cipher_ctx_st;
struct evp_pkey_st;

namespace kvl::crypto {

using Bytes = std::span<const std::byte>;
using Digest = std::array<std::byte, 32>;

// 32 secret bytes, wiped when they go.
struct Key {
  std::array<std::byte, 32> bytes{};

  Key() = default;
  Key(const Key&) = default;
  Key& operator=(const Key&) = default;
  ~Key();
  operator Bytes() const { return bytes; }  // NOLINT: a key is read as bytes everywhere
};

inline Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

// From the kernel. A kernel without randomness ends the process: no key can be made.
void random(std::span<std::byte> out);
// Takes as long for unequal bytes as for equal ones.
bool equal(Bytes a, Bytes b);

Digest sha256(std::initializer_list<Bytes> parts);
Digest hmac(Bytes key, std::initializer_list<Bytes> parts);
// HKDF-SHA-256, one block: extract() with a salt, expand() for a purpose.
Key extract(Bytes salt, Bytes input);
Key expand(Bytes key, std::string_view purpose, Bytes context = {});

// An ephemeral X25519 key pair. `seed` is its secret: 32 random bytes.
class Exchange {
 public:
  explicit Exchange(Bytes seed);
  Digest share() const;  // public
  // False: the other side's share is no good.
  bool agree(Bytes other_share, Key& shared) const;

 private:
  struct Free {
    void operator()(evp_pkey_st* key) const;
  };
  std::unique_ptr<evp_pkey_st, Free> secret_;
};

inline constexpr std::size_t kTagBytes = 16;

// An AEAD for one direction of one connection: AES-256-GCM for keys of 32 bytes, AES-128-OCB (RFC
// 7253) for keys of 16 bytes, twice as fast. Each message has its own counter, which is its nonce:
// a key must never see a counter twice. No allocation after the first messages.
class Aead {
 public:
  enum class Use : std::uint8_t { seal, open };
  // `key` has 16 or 32 bytes.
  Aead(Use use, Bytes key);
  Aead(Aead&&) noexcept;
  Aead& operator=(Aead&&) noexcept;
  ~Aead();

  // One message: begin, update any number of times, then seal_end or open_end. The output is as
  // long as all inputs together and does not overlap them; it is whole only after the end. `header`
  // is authenticated, not encrypted. What open has written is worth nothing until open_end() says
  // true.
  bool begin(std::uint64_t counter, Bytes header, std::byte* out);
  bool update(Bytes in);
  bool seal_end(std::byte* tag);
  bool open_end(const std::byte* tag);

 private:
  struct Free {
    void operator()(evp_cipher_ctx_st* context) const;
  };
  bool finish();
  std::unique_ptr<evp_cipher_ctx_st, Free> context_;
  std::byte* out_ = nullptr;
};

}  // namespace kvl::crypto
