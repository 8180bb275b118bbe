// What Links over fabrics say to each other: sealed names of memory over the control channel, short
// messages over the fabric. Little-endian. Everything that arrives is hostile.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvl/memory.h"
#include "kvl/metrics.h"
#include "kvl/transport.h"

namespace kvl {

inline constexpr std::uint16_t kPeerWireVersion = 1;

// Names a peer of a Link. Only who has its offer knows the secret.
struct PeerToken {
  std::uint64_t peer = 0;
  std::array<std::byte, 16> secret{};
  friend bool operator==(const PeerToken&, const PeerToken&) = default;
};

// Where a Link is heard, as the library below it says.
struct PeerOffer {
  PeerToken token;
  std::uint32_t address_format = 0;
  std::vector<std::byte> address;
};
Blob encode(const PeerOffer& offer);
// invalid_argument: not an offer of this version, or a longer address.
Result<PeerOffer> decode_offer(std::span<const std::byte> blob, std::size_t address_bytes_max);

// Ends the name of a memory with a seal under the secret that its owner gave to one peer: no other
// peer can use the name, and one that was changed under way is refused before anybody parses it.
inline constexpr std::size_t kSealBytes = 16;
Blob seal(std::span<const std::byte> name, const PeerToken& owner);
bool sealed_by(std::span<const std::byte> blob, const PeerToken& owner);

// One memory, as the peer needs it for its operations: a registration, or several that lie side by
// side where no device takes so much at once.
inline constexpr std::uint64_t kPartBytesMin = 1 << 20;
inline constexpr std::uint64_t kPartsMax = 4096;
struct RemoteName {
  Access access = Access::local;
  std::uint64_t serial = 0;  // of the owner; never used twice
  std::uint64_t key = 0;
  std::uint64_t base = 0;  // 0 where the fabric counts from the beginning of a registration
  std::uint64_t bytes = 0;
  std::uint64_t part_bytes = 0;          // of each registration but the last; 0: there is one
  std::vector<std::uint64_t> more_keys;  // of the second, third, …

  std::uint64_t key_at(std::uint64_t offset) const {
    return part_bytes == 0 || offset < part_bytes ? key : more_keys[offset / part_bytes - 1];
  }
  std::uint64_t address_at(std::uint64_t offset) const {
    return base != 0 || part_bytes == 0 ? base + offset : offset % part_bytes;
  }
  // How much of one registration follows.
  std::uint64_t stretch_at(std::uint64_t offset) const {
    return part_bytes == 0 ? bytes - offset : part_bytes - offset % part_bytes;
  }
};
// Sealed.
Blob encode(const RemoteName& name, const PeerToken& owner);
Result<RemoteName> decode_name(std::span<const std::byte> blob);

enum class MessageType : std::uint8_t {
  hello = 1,    // `value`: flags of the sender, where a fabric has any
  note = 2,     // `note`, `note_bytes`
  forget = 3,   // the memory with serial `value` is gone
  goodbye = 4,  // the sender closes; over the control channel where there is one
  nothing = 5,
  clear = 6,  // over the control channel: no operation from before this session is under way
  quiet = 7,  // over the control channel: nothing of the sender's is under way, nor will be until
              // one of the two has said its address again; `value`: how many messages it has sent
  // Where immediates are counted (a note's `value` says how many of which slot come before it):
  grant = 8,    // `value`: the channel that the receiver's immediates may carry
  uncount = 9,  // `value` as a note's: no note follows them
  freed = 10,   // `value`: bits of the slots that the receiver may use again
};
inline constexpr std::uint64_t kHelloHeard = 1;  // I have heard you
inline constexpr std::uint64_t kHelloUp = 2;     // … and you me

struct PeerMessage {
  std::uint32_t magic = kMagic;
  std::uint16_t version = kPeerWireVersion;
  MessageType type = MessageType::nothing;
  std::uint8_t note_bytes = 0;
  std::uint64_t to_peer = 0;  // the receiver's token
  std::array<std::byte, 16> to_secret{};
  std::uint64_t value = 0;
  std::array<std::byte, kNoteBytesMax> note{};

  static constexpr std::uint32_t kMagic = 0x4d46564b;  // "KVFM"
};
static_assert(sizeof(PeerMessage) == 72);

PeerMessage message_to(const PeerToken& receiver, MessageType type, std::uint64_t value = 0,
                       std::span<const std::byte> note = {});
// False: not a message of this version.
bool decode(std::span<const std::byte> bytes, PeerMessage& message);
bool is_for(const PeerMessage& message, const PeerToken& receiver);

// A message that is not from a peer of ours.
enum class Stranger : std::uint8_t {
  malformed,      // no message of this version
  unknown_token,  // of no session that we are in
};
inline constexpr std::size_t kStrangers = static_cast<std::size_t>(Stranger::unknown_token) + 1;
std::string_view cause_of(Stranger stranger);
using CountByStranger = std::array<Counter, kStrangers>;

}  // namespace kvl
