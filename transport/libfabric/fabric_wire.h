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

// An immediate: the channel that its receiver has given to the sender, and below it the slot of the
// batch. `value` of a counted note: how many of that slot came with its writes, and below it the
// slot.
inline constexpr std::uint32_t kNoChannel = 0;
inline constexpr std::uint32_t kChannelBits = 24, kSlotBits = 8;
inline constexpr std::uint32_t kCountSlots = 8;  // of one sender, in one direction
inline constexpr std::uint32_t kCountMax = 16;   // immediates of one of them
inline constexpr std::uint32_t kAllSlots = (1U << kCountSlots) - 1;
// What a sender may have under way, and so what the receiver's queue must have room for.
inline constexpr std::uint32_t kImmediatesOfPeer = kCountSlots * kCountMax;

}  // namespace kvl::libfabric
