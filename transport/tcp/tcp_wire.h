// What travels on a data lane, byte for byte; docs/wire/tcp.md is the same as a document.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/address.h"

namespace kvl::tcp {

static_assert(std::endian::native == std::endian::little, "structs are sent as they lie");

inline constexpr std::uint16_t kWireVersion = 2;
inline constexpr std::uint32_t kGreetingMagic = 0x54564b47;  // "GKVT"
inline constexpr std::uint32_t kFrameMagic = 0x54564b46;     // "FKVT"
inline constexpr std::uint32_t kOfferMagic = 0x54564b4f;     // "OKVT"
inline constexpr std::uint32_t kMemoryMagic = 0x54564b4d;    // "MKVT"

inline constexpr std::uint32_t kFrameRunsMax = 1024;
inline constexpr std::uint64_t kFrameBytesMax = std::uint64_t{1} << 32;
inline constexpr std::uint32_t kFrameAcksMax = 1024;
inline constexpr std::uint32_t kLanesMax = 64;
inline constexpr std::uint32_t kBatchesInflightMax = 65536;
inline constexpr std::size_t kOfferAddressesMax = 16;
// Reads that a side may have asked for on one lane and not yet seen answered.
inline constexpr std::uint32_t kReadRequestsMax = 64;
inline constexpr std::uint32_t kReadRunsMax = 4096;

using Token = std::array<std::byte, 16>;
using Nonce = std::array<std::byte, 16>;
using Proof = std::array<std::byte, 16>;

enum class GreetingKind : std::uint16_t { hello = 1, welcome = 2 };

// The first bytes in each direction of a lane: the dialer's hello, then the listener's welcome.
struct Greeting {
  std::uint32_t magic = kGreetingMagic;
  std::uint16_t version = kWireVersion;
  GreetingKind kind = GreetingKind::hello;
  Token token{};  // of the offer of the side that reads this
  std::uint32_t lane = 0;
  std::uint32_t lanes = 0;
  std::uint32_t incarnation = 0;
  std::uint32_t batches_inflight_max = 0;
  std::uint64_t reserved = 0;
  // Of an authenticated session; zeros otherwise.
  Nonce nonce{};
  Proof proof{};
};
static_assert(sizeof(Greeting) == 80);

enum class FrameType : std::uint8_t {
  write = 1,         // runs, note, data
  read_request = 2,  // runs
  read_data = 3,     // data of the oldest unanswered request
  read_done = 4,     // that request is over
  ack = 5,           // acknowledged write batches
};
inline constexpr std::uint8_t kFlagEnd = 1;        // last frame of its batch
inline constexpr std::uint8_t kFlagAbandoned = 2;  // with kFlagEnd: the rest will not come

struct FrameHeader {
  FrameType type = FrameType::write;
  std::uint8_t flags = 0;
  std::uint8_t note_bytes = 0;
  std::uint8_t code = 0;         // read_done: a Code
  std::uint32_t count = 0;       // runs, or acknowledgements
  std::uint64_t batch = 0;       // the initiator's name of its batch
  std::uint64_t data_bytes = 0;  // following data; read_request: asked for; read_done: sent
  std::uint32_t reserved = 0;
  std::uint32_t magic = kFrameMagic;
};
static_assert(sizeof(FrameHeader) == 32);

// `count` pieces of `bytes` at offset, offset + stride, … of a registered memory.
struct WireRun {
  std::uint64_t memory = 0;
  std::uint64_t offset = 0;
  std::uint64_t stride = 0;
  std::uint32_t bytes = 0;
  std::uint32_t count = 0;
};
static_assert(sizeof(WireRun) == 32);

struct WireAck {
  std::uint64_t batch = 0;
  std::uint64_t bytes = 0;  // landed
  std::uint32_t code = 0;   // a Code
  std::uint32_t reserved = 0;
};
static_assert(sizeof(WireAck) == 24);

inline constexpr std::size_t kHeadBytesMax =
    sizeof(FrameHeader) + kFrameRunsMax * sizeof(WireRun) + kNoteBytesMax;
static_assert(kFrameAcksMax * sizeof(WireAck) <= kFrameRunsMax * sizeof(WireRun));

template <typename T>
T read_wire(const std::byte* from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
void write_wire(std::byte* to, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(to, &value, sizeof(T));
}

// How many bytes the header block of `header` has in all; 0: no such frame.
std::size_t head_bytes(const FrameHeader& header);

// A Code from the wire; values this version does not know become `internal`.
Code code_from_wire(std::uint32_t value);

// Takes as long for a wrong token as for a right one.
bool same_token(const Token& a, const Token& b);

// What a peer must know to dial us.
struct Offer {
  Token token{};
  Token host{};  // equal for two processes that share a loopback interface
  std::uint16_t lanes = 1;
  std::vector<SocketAddress> addresses;  // with the port; at most kOfferAddressesMax
};
Blob encode(const Offer& offer);
Result<Offer> decode_offer(std::span<const std::byte> bytes);

struct MemoryName {
  std::uint64_t memory = 0;
  std::uint64_t bytes = 0;
  Access access = Access::local;
};
Blob encode(const MemoryName& name);
Result<MemoryName> decode_memory(std::span<const std::byte> bytes);

// Between the two Links, over the control channel: lane `lane` up to `incarnation` is dead.
enum class ControlKind : std::uint32_t {
  fence = 1,   // my end is closed; close yours and say so
  fenced = 2,  // mine is closed: nothing of it can land any more
  bye = 3,     // this peer is closed
};
struct ControlMessage {
  ControlKind kind = ControlKind::bye;
  std::uint32_t lane = 0;
  std::uint32_t incarnation = 0;
  std::uint32_t version = kWireVersion;
};
static_assert(sizeof(ControlMessage) == 16);

}  // namespace kvl::tcp
