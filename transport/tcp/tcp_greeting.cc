// Proofs and keys from a session's key.
#include "transport/tcp/tcp_greeting.h"

#include <cstddef>

namespace kvl::tcp {

Proof prove_greeting(crypto::Bytes session_key, const Greeting& greeting, const Nonce& heard) {
  // Kind, lane, incarnation, token and nonce all lie before the proof.
  const auto said = std::as_bytes(std::span(&greeting, 1)).first(offsetof(Greeting, proof));
  const crypto::Digest digest =
      crypto::hmac(session_key, {crypto::bytes_of("kvlane tcp greeting"), said, heard});
  Proof proof;
  std::copy_n(digest.begin(), proof.size(), proof.begin());
  return proof;
}

LaneKeys lane_keys(crypto::Bytes session_key, const Nonce& of_dialer, const Nonce& of_listener) {
  std::array<std::byte, sizeof(Nonce) * 2> both;
  std::copy(of_dialer.begin(), of_dialer.end(), both.begin());
  std::copy(of_listener.begin(), of_listener.end(), both.begin() + sizeof(Nonce));
  return {crypto::expand(session_key, "kvlane tcp from dialer", both),
          crypto::expand(session_key, "kvlane tcp from listener", both)};
}

}  // namespace kvl::tcp
