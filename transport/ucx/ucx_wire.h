// Names of memory, as two UCX Links exchange them over the control channel; offers and messages are
// those of every fabric. Little-endian. Everything that arrives is hostile.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvl/memory.h"
#include "kvl/transport.h"
#include "transport/fabric/peer_wire.h"

namespace kvl::ucx {

inline constexpr std::size_t kAddressBytesMax = 16384;  // ucp_worker_get_address
inline constexpr std::size_t kKeyBytesMax = 4096;       // ucp_rkey_pack

// A registration, as the peer needs it for its operations.
struct RemoteName {
  Access access = Access::local;
  std::uint64_t serial = 0;  // of the owner; never used twice
  std::uint64_t base = 0;    // address there; its MemoryId where runs are copied
  std::uint64_t bytes = 0;
  std::vector<std::byte> key;  // empty where runs are copied
};
// Sealed for the one peer that it is for: UCX parses no key that our peer has not made.
Blob encode(const RemoteName& name, const PeerToken& owner);
Result<RemoteName> decode_name(std::span<const std::byte> blob);

// Runs as messages, where UCX has no remote memory access.
enum class RunType : std::uint8_t {
  write = 1,    // `bytes` of data for `memory` at `offset`; cookie: of its batch
  fetch = 2,    // asks for `bytes` of `memory` at `offset`
  fetched = 3,  // … some of them, `offset` in what was asked for, or the code why not
  fence = 4,    // asks whether all `offset` writes so far are in place; memory: cookie of a batch
  fenced = 5,   // … they are; code: of the first of the batch that was refused
};
inline constexpr std::size_t kCopyBytes = 32768;  // data of one message at most

struct RunHeader {
  std::uint32_t magic = kMagic;
  std::uint16_t version = kPeerWireVersion;
  RunType type = RunType::write;
  Code code = Code::ok;
  std::uint64_t to_peer = 0;  // the receiver's token
  std::array<std::byte, 16> to_secret{};
  std::uint64_t cookie = 0;  // comes back in the answer
  std::uint64_t memory = 0, offset = 0, bytes = 0;

  static constexpr std::uint32_t kMagic = 0x4e52564b;  // "KVRN"
};
static_assert(sizeof(RunHeader) == 64);

// False: no run of this version, or not with so much data.
bool decode(std::span<const std::byte> header, std::size_t data_bytes, RunHeader& run);

}  // namespace kvl::ucx
