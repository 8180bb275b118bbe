// Mutual authentication by a shared secret: a state machine without a socket, and the channel that
// it leaves behind. docs/wire/control.md has the protocol.
//
// What a completed handshake means: the other side knows one of our secrets, it took part in this
// very exchange (both nonces and both X25519 shares are in what was proven), and both sides agree
// on what each had asked for. The session keys come from the secret and the exchange: who learns
// the secret later cannot read what was recorded.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kvl/security.h"
#include "kvl/status.h"
#include "transport/base/crypto.h"
#include "transport/core/auth_wire.h"

namespace kvl::auth {

inline constexpr Status kWrongSecret{
    Code::permission, "the peer does not know our secret; give both sides the same secret"};

// What both sides know after a handshake and nobody else does.
struct SessionKeys {
  crypto::Key from_dialer, from_listener;  // control messages, by who sends them
  crypto::Key data;                        // what data lanes derive their keys from
  bool encrypt = false;                    // one of the two wants the data path sealed
};

// Fills bytes that nobody can guess. The simulator gives its own, so that runs repeat.
using Random = std::function<void(std::span<std::byte>)>;

class Handshake {
 public:
  enum class Side : std::uint8_t { dialer, listener };
  // `secrets` outlives it and is not empty.
  Handshake(Side side, const Secrets& secrets, bool encrypt, const Random& random);

  // Dialer: the first message.
  std::vector<std::byte> start();
  // What to send for `message` (empty: nothing). After a failure `reply` is what the other side
  // should be told; the connection is over then. permission: the secret is wrong; invalid_argument,
  // unsupported: not this protocol.
  Status on_message(std::span<const std::byte> message, std::vector<std::byte>& reply);
  bool done() const { return state_ == State::done; }
  // After done().
  const SessionKeys& keys() const { return keys_; }

 private:
  enum class State : std::uint8_t { challenge, answer, proof, done, failed };

  Status on_challenge(std::span<const std::byte> message, std::vector<std::byte>& reply);
  Status on_answer(std::span<const std::byte> message, std::vector<std::byte>& reply);
  Status on_proof(std::span<const std::byte> message, std::vector<std::byte>& reply);
  crypto::Key master(std::size_t secret, const crypto::Key& shared) const;
  void finish(const crypto::Key& master, const crypto::Digest& last_proof);

  const Secrets& secrets_;
  bool encrypt_;
  State state_;
  Nonce nonce_{};
  std::unique_ptr<crypto::Exchange> exchange_;
  std::vector<std::byte> challenge_;  // dialer: as sent
  std::vector<crypto::Key> masters_;  // listener: one for each secret
  crypto::Digest transcript_{};       // of challenge and answer
  SessionKeys keys_;
};

// Seals and opens control messages. The number of each message is part of what is authenticated: a
// message that was dropped, repeated, changed or moved by somebody in between does not open.
class Channel {
 public:
  Channel(Handshake::Side side, const SessionKeys& keys);
  std::vector<std::byte> seal(std::span<const std::byte> message);
  // corrupt: the connection is over.
  Result<std::vector<std::byte>> open(std::span<const std::byte> sealed);

 private:
  crypto::Aead out_, in_;
  std::uint64_t sent_ = 0, received_ = 0;
};

}  // namespace kvl::auth
