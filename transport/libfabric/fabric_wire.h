// What two libfabric Links say to each other: offers and names of memory over the control channel,
// messages over the fabric. Little-endian. Everything that arrives is hostile.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kvl/memory.h"
#include "kvl/transport.h"

namespace kvl::libfabric {

inline constexpr std::uint16_t kWireVersion = 1;
inline constexpr std::size_t kAddressBytesMax = 256;

// Names a peer of a Link. Only who has its offer knows the secret.
struct Token {
  std::uint64_t peer = 0;
  std::array<std::byte, 16> secret{};
  friend bool operator==(const Token&, const Token&) = default;
};

struct Offer {
  Token token;
  std::uint32_t address_format = 0;
  std::vector<std::byte> address;  // fi_getname
};
Blob encode(const Offer& offer);
// invalid_argument: not an offer of this version.
Result<Offer> decode_offer(std::span<const std::byte> blob);

// A registration, as the peer needs it for its operations.
struct RemoteName {
  Access access = Access::local;
  std::uint64_t serial = 0;  // of the owner; never used twice
  std::uint64_t key = 0;
  std::uint64_t base = 0;  // 0 where the provider counts from the beginning of the memory
  std::uint64_t bytes = 0;
};
// Sealed with the secret that the owner gave to this very peer: no other peer can use the name, and
// one that was changed under way is refused before the provider sees it.
Blob encode(const RemoteName& name, const Token& owner);
Result<RemoteName> decode_name(std::span<const std::byte> blob);
bool sealed_by(std::span<const std::byte> blob, const Token& owner);

enum class MessageType : std::uint8_t {
  hello = 1,    // `value`: HelloFlags of the sender
  note = 2,     // `note`, `note_bytes`
  forget = 3,   // the memory with serial `value` is gone
  goodbye = 4,  // the sender closes; over the control channel where there is one
  nothing = 5,  // rings a doorbell that is still owed
};
inline constexpr std::uint64_t kHelloHeard = 1;  // I have heard you
inline constexpr std::uint64_t kHelloUp = 2;     // … and you me

struct Message {
  std::uint32_t magic = kMagic;
  std::uint16_t version = kWireVersion;
  MessageType type = MessageType::nothing;
  std::uint8_t note_bytes = 0;
  std::uint64_t to_peer = 0;  // the receiver's token
  std::array<std::byte, 16> to_secret{};
  std::uint64_t value = 0;
  std::array<std::byte, kNoteBytesMax> note{};

  static constexpr std::uint32_t kMagic = 0x4d46564b;  // "KVFM"
};
static_assert(sizeof(Message) == 72);

// False: not a message of this version.
bool decode(std::span<const std::byte> bytes, Message& message);

}  // namespace kvl::libfabric
