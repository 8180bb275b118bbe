// The three messages by which two engines prove to each other that they know a secret, as bytes.
// docs/wire/control.md has the offsets. Decoders are pure; everything they read is hostile.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kvl/security.h"
#include "kvl/status.h"
#include "transport/base/crypto.h"

namespace kvl::auth {

inline constexpr std::uint32_t kMagic = 0x41564B43;  // "CKVA"
inline constexpr std::uint16_t kVersion = 1;
// No message of a handshake is longer.
inline constexpr std::size_t kMessageBytesMax = 512;

// The first byte; those of the engine's own messages are below 32.
enum class Type : std::uint8_t {
  challenge = 32,  // dialer, first
  answer = 33,     // listener
  proof = 34,      // dialer; from here on everything is sealed
  refused = 35,    // either, last: why
};
inline bool is_auth(std::span<const std::byte> message) {
  return !message.empty() && std::to_integer<int>(message[0]) >= 32 &&
         std::to_integer<int>(message[0]) <= 35;
}

// A hint for the other side's operator. Not authenticated: it may not change what a side does.
enum class Reason : std::uint8_t {
  wrong_secret = 1,     // none of your secrets is one of mine
  secret_required = 2,  // I have a secret, you spoke without
  no_secret = 3,        // you have a secret, I have none
  malformed = 4,        // not this protocol, or another version
};

using Nonce = std::array<std::byte, 32>;

struct Challenge {
  bool encrypt = false;  // the sender wants the data path sealed
  Nonce nonce{};
  crypto::Digest share{};  // X25519
};
struct Answer {
  bool encrypt = false;
  Nonce nonce{};
  crypto::Digest share{};
  std::vector<crypto::Digest> proofs;  // one for each secret of the listener; 1 to kSecretsMax
};
struct Proof {
  std::uint8_t secret = 0;  // which of the listener's proofs was right
  crypto::Digest proof{};
};

std::vector<std::byte> encode(const Challenge&);
std::vector<std::byte> encode(const Answer&);
std::vector<std::byte> encode(const Proof&);
std::vector<std::byte> encode(Reason);
// Of an encoded Answer: what its proofs are about.
std::span<const std::byte> without_proofs(std::span<const std::byte> answer);

Result<Challenge> decode_challenge(std::span<const std::byte> message);
Result<Answer> decode_answer(std::span<const std::byte> message);
Result<Proof> decode_proof(std::span<const std::byte> message);
Result<Reason> decode_refused(std::span<const std::byte> message);

}  // namespace kvl::auth
