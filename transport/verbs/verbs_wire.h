// What two verbs Links say to each other beside names of memory and messages
// (transport/fabric/peer_wire.h): offers.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kvl/transport.h"
#include "transport/fabric/peer_wire.h"

namespace kvl::verbs {

inline constexpr std::uint16_t kWireVersion = 1;

// Where a queue pair is, and what it takes.
struct QueuePairAddress {
  std::uint32_t number = 0;
  std::uint32_t first_psn = 0;        // 24 bits
  std::array<std::byte, 16> gid{};    // all zero: none
  std::uint16_t lid = 0;              // 0: Ethernet
  std::uint8_t mtu = 0;               // enum ibv_mtu
  std::uint8_t reads_served_max = 0;  // reads of the other side that may be under way; 0: none
};

struct Offer {
  PeerToken token;
  QueuePairAddress address;
};
Blob encode(const Offer& offer);
// invalid_argument: not an offer of this version.
Result<Offer> decode_offer(std::span<const std::byte> blob);

}  // namespace kvl::verbs
