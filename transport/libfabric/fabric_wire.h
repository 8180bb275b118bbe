// What two libfabric Links say to each other beside names of memory and messages
// (transport/fabric/peer_wire.h): offers over the control channel, the hello over the fabric.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvl/transport.h"
#include "transport/fabric/peer_wire.h"

namespace kvl::libfabric {

inline constexpr std::uint16_t kWireVersion = 1;
inline constexpr std::size_t kAddressBytesMax = 256;

struct Offer {
  PeerToken token;
  std::uint32_t address_format = 0;
  std::vector<std::byte> address;  // fi_getname
};
Blob encode(const Offer& offer);
// invalid_argument: not an offer of this version.
Result<Offer> decode_offer(std::span<const std::byte> blob);

// The value of a hello.
inline constexpr std::uint64_t kHelloHeard = 1;  // I have heard you
inline constexpr std::uint64_t kHelloUp = 2;     // … and you me
// `value` of a goodbye: nothing of the sender's is under way to the receiver any more, for ever.
inline constexpr std::uint64_t kGoodbyeReleased = 1;

}  // namespace kvl::libfabric
