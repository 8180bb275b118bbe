// What two libfabric Links say to each other beside what all fabrics do
// (transport/fabric/peer_wire.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "transport/fabric/peer_wire.h"

namespace kvl::libfabric {

inline constexpr std::size_t kAddressBytesMax = 256;  // fi_getname
// `value` of a goodbye: nothing of the sender's is under way to the receiver any more, for ever.
inline constexpr std::uint64_t kGoodbyeReleased = 1;

}  // namespace kvl::libfabric
