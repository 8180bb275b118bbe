// The messages of a control connection, as bytes. docs/wire/control.md has the offsets.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvl/engine.h"
#include "kvl/status.h"

namespace kvl::control {

inline constexpr std::uint32_t kMagic = 0x4C564B43;  // "CKVL"
inline constexpr std::uint16_t kVersion = 1;
inline constexpr std::size_t kRailsMax = 256;
inline constexpr std::size_t kBlobBytesMax = 64u << 10;

enum class Type : std::uint8_t {
  hello = 1,          // first message of each side
  rail_offer = 2,     // dialer: open this pair of rails
  rail_accept = 3,    // answer to rail_offer
  rail_close = 4,     // "your Link must not write mine any more"; also refuses an offer
  rail_closed = 5,    // answer: it cannot
  link_message = 6,   // Link to Link
  memory_add = 7,     // a handle exists
  memory_export = 8,  // how one rail reaches it
  memory_drop = 9,    // a handle is gone
  user = 10,          // Engine::send
  heartbeat = 11,
  bye = 12,  // the sender ends the connection on purpose
};

struct RailName {
  std::string transport, device, domain;
  std::uint8_t nearness = 0;  // to the sender's memory: 0 first choice, else a reserve
};
struct Hello {
  EngineId id{};
  std::uint64_t epoch = 0;
  std::string address;  // where the sender listens
  std::int32_t pid = 0;
  std::vector<RailName> rails;
};

// One pair of rails of two engines, and which attempt to join them. Chosen by the dialer.
struct PairRef {
  std::uint16_t dialer_rail = 0, listener_rail = 0;
  std::uint32_t incarnation = 0;
};

std::vector<std::byte> encode(const Hello&);
Result<Hello> decode_hello(std::span<const std::byte> body);

// Type byte and pair, then a blob: rail_offer, rail_accept, rail_close (reason text), rail_closed,
// link_message.
std::vector<std::byte> encode(Type, PairRef, std::span<const std::byte> blob = {});
struct PairMessage {
  PairRef pair;
  std::span<const std::byte> blob;
};
Result<PairMessage> decode_pair(std::span<const std::byte> body);

std::vector<std::byte> encode_memory(Type, std::uint64_t handle);
Result<std::uint64_t> decode_memory(std::span<const std::byte> body);

// An empty blob: this rail cannot export the memory.
std::vector<std::byte> encode_export(PairRef, std::uint64_t handle,
                                     std::span<const std::byte> blob);
struct ExportMessage {
  PairRef pair;
  std::uint64_t handle = 0;
  std::span<const std::byte> blob;
};
Result<ExportMessage> decode_export(std::span<const std::byte> body);

std::vector<std::byte> encode_user(std::span<const std::byte> message);
std::vector<std::byte> encode(Type);  // heartbeat, bye

}  // namespace kvl::control
