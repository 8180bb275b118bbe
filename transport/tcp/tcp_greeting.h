// What greetings prove in an authenticated session, and the keys that an encrypted lane gets from
// them. Pure.
#pragma once

#include "transport/base/crypto.h"
#include "transport/tcp/tcp_wire.h"

namespace kvl::tcp {

// Shows that the sender knows the session's key and means this lane, incarnation and role. `heard`:
// the nonce of the hello that a welcome answers; zeros for a hello.
Proof prove_greeting(crypto::Bytes session_key, const Greeting& greeting, const Nonce& heard);

inline constexpr std::size_t kLaneKeyBytes = 16;
struct LaneKeys {
  crypto::Key from_dialer, from_listener;  // the first kLaneKeyBytes count
};
// Both nonces are fresh, so every incarnation of every lane has keys of its own.
LaneKeys lane_keys(crypto::Bytes session_key, const Nonce& of_dialer, const Nonce& of_listener);

}  // namespace kvl::tcp
