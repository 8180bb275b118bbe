// What two shm Links say to each other: offers, socket messages and the shared control page. The
// document is docs/wire/shm.md. Both ends are on one host, so all of it is in host byte order.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvl/memory.h"
#include "kvl/transport.h"

namespace kvl::shm {

inline constexpr std::uint16_t kWireVersion = 1;
inline constexpr std::uint32_t kOfferMagic = 0x4f4d4853;    // "SHMO"
inline constexpr std::uint32_t kMessageMagic = 0x4d4d4853;  // "SHMM"
inline constexpr std::uint32_t kMemoryMagic = 0x524d4853;   // "SHMR"
inline constexpr std::uint64_t kOutboxMagic = 0x786f626c766b6d73;

using Token = std::array<std::byte, 16>;

// Who this host and user are; peers with another identity are not reachable by shm.
struct HostIdentity {
  Token boot_id{};
  std::uint32_t uid = 0;
  std::uint64_t net_namespace = 0;  // abstract socket names live in it
  friend bool operator==(const HostIdentity&, const HostIdentity&) = default;
};

struct Offer {
  Token name{};   // of the Link's listening socket
  Token token{};  // of this peer of that Link
  std::int32_t pid = 0;
  HostIdentity host;
};
Blob encode(const Offer& offer);
// invalid_argument: not an offer of this version; unsupported: of another host or user.
Result<Offer> decode_offer(std::span<const std::byte> blob, const HostIdentity& here);

enum class MemoryPath : std::uint8_t {
  mapped = 1,   // a sealed memfd, mapped by the peer
  foreign = 2,  // reached with process_vm_readv and process_vm_writev
};

// A registered memory as the peer knows it: sent over the socket (with the memfd) and exported as
// the blob. The blob is believed only where it equals what came over the socket.
struct MemoryCard {
  std::uint32_t magic = kMemoryMagic;
  std::uint16_t version = kWireVersion;
  MemoryPath path = MemoryPath::mapped;
  Access access = Access::local;
  std::uint32_t index = 0;       // into the owner's table of memories
  std::uint32_t generation = 0;  // > 0
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;   // mapped: in the memfd, a multiple of the page size
  std::uint64_t address = 0;  // foreign: in the owner's process
  std::uint64_t nonce = 0;
  friend bool operator==(const MemoryCard&, const MemoryCard&) = default;
};
static_assert(sizeof(MemoryCard) == 48);
Result<MemoryCard> decode_card(std::span<const std::byte> blob);

enum class MessageType : std::uint16_t {
  hello = 1,     // active -> passive, with the outbox
  welcome = 2,   // passive -> active, with the outbox: the pair is up
  memory = 3,    // `card`; with the memfd where it is mapped
  forget = 4,    // `card` was removed: unmap it
  doorbell = 5,  // wake up and look
  goodbye = 6,   // closed here: none of your memory will be touched any more
};

// One SEQPACKET message.
struct Message {
  std::uint32_t magic = kMessageMagic;
  std::uint16_t version = kWireVersion;
  MessageType type = MessageType::doorbell;
  Token to{};    // hello, welcome: the receiver's token, which proves that its offer was received
  Token from{};  // hello, welcome: the sender's
  std::uint64_t probe_address = 0;  // hello, welcome: where the sender's process holds `from`
  MemoryCard card{};
};
static_assert(sizeof(Message) == 96);

inline constexpr std::uint32_t kNoteSlots = 256;
inline constexpr std::uint32_t kMemoriesMax = 4096;
inline constexpr std::uint32_t kGates = 16;

struct NoteSlot {
  std::uint8_t bytes = 0;
  std::array<std::byte, 63> data{};
};
static_assert(sizeof(NoteSlot) == 64 && kNoteBytesMax <= 63);

// The outbox: one memfd for each direction of a pair. Its owner alone writes it, the peer maps it
// read-only (F_SEAL_FUTURE_WRITE): a peer can lie in its own outbox but not spoil ours.
struct OutboxLayout {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t bytes;
  std::uint32_t note_slots, memories, gates;
  alignas(64) std::atomic<std::uint64_t> note_head;  // notes written to `notes`, ever
  alignas(64) std::atomic<std::uint64_t> note_tail;  // notes taken from the peer's outbox, ever
  alignas(64) std::atomic<std::uint32_t> armed;      // odd: the owner sleeps; grows at each change
  std::atomic<std::uint32_t> blocked;                // 1: the owner waits for room for a note
  std::atomic<std::uint32_t> closed;                 // 1: all memory of the owner is shut
  // Memory of the peer that the owner is touching right now: index + 1, 0 none.
  alignas(64) std::array<std::atomic<std::uint32_t>, kGates> touching;
  alignas(4096) std::array<NoteSlot, kNoteSlots> notes;
  // Generation of each memory that the owner has exported to this peer, 0 none.
  alignas(4096) std::array<std::atomic<std::uint32_t>, kMemoriesMax> memories_valid;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(offsetof(OutboxLayout, note_head) == 64);
static_assert(offsetof(OutboxLayout, note_tail) == 128);
static_assert(offsetof(OutboxLayout, armed) == 192);
static_assert(offsetof(OutboxLayout, touching) == 256);
static_assert(offsetof(OutboxLayout, notes) == 4096);
static_assert(offsetof(OutboxLayout, memories_valid) == 4096 + 16384);
static_assert(sizeof(OutboxLayout) == 4096 + 16384 + 16384);

}  // namespace kvl::shm
