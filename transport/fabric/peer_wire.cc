// Encoding and checks of what Links over fabrics exchange.
#include "transport/fabric/peer_wire.h"

#include <algorithm>
#include <cstring>

#include "transport/base/crypto.h"
#include "transport/base/ordered_table.h"
#include "transport/base/wire.h"

namespace kvl {
namespace {

constexpr std::uint32_t kNameMagic = 0x5246564b;  // "KVFR"
constexpr std::size_t kSealBytes = 16;
constexpr std::size_t kNameBytes = 4 + 2 + 1 + 4 * 8 + kSealBytes;

struct StrangerInfo {
  Stranger stranger;
  std::string_view cause;
};
constexpr std::array<StrangerInfo, kStrangers> kStrangerTable{{
    {Stranger::malformed, "malformed"},
    {Stranger::unknown_token, "unknown_token"},
}};
static_assert(in_order<&StrangerInfo::stranger>(kStrangerTable));

crypto::Digest seal_of(std::span<const std::byte> name, const PeerToken& owner) {
  return crypto::hmac(owner.secret, {name});
}

}  // namespace

Blob encode(const RemoteName& name, const PeerToken& owner) {
  WireWriter out;
  out.put(kNameMagic).put(kPeerWireVersion).put(name.access).put(name.serial).put(name.key);
  out.put(name.base).put(name.bytes);
  const crypto::Digest seal = seal_of(out.view(), owner);
  out.raw(std::span(seal).first(kSealBytes));
  return out.take();
}

Result<RemoteName> decode_name(std::span<const std::byte> blob) {
  WireReader in(blob);
  const bool known =
      in.get<std::uint32_t>() == kNameMagic && in.get<std::uint16_t>() == kPeerWireVersion;
  RemoteName name;
  name.access = in.get<Access>();
  name.serial = in.get<std::uint64_t>();
  name.key = in.get<std::uint64_t>();
  name.base = in.get<std::uint64_t>();
  name.bytes = in.get<std::uint64_t>();
  in.raw(kSealBytes);
  std::uint64_t end = 0;
  if (!known || !in.finished() || static_cast<std::uint8_t>(name.access) > 3 || name.bytes == 0 ||
      __builtin_add_overflow(name.base, name.bytes, &end)) {
    return Status{Code::invalid_argument, "not a name of memory of this version"};
  }
  return name;
}

bool sealed_by(std::span<const std::byte> blob, const PeerToken& owner) {
  if (blob.size() != kNameBytes) return false;
  const crypto::Digest seal = seal_of(blob.first(blob.size() - kSealBytes), owner);
  return crypto::equal(std::span(seal).first(kSealBytes), blob.last(kSealBytes));
}

PeerMessage message_to(const PeerToken& receiver, MessageType type, std::uint64_t value,
                       std::span<const std::byte> note) {
  PeerMessage message;
  message.type = type;
  message.note_bytes = static_cast<std::uint8_t>(note.size());
  message.to_peer = receiver.peer;
  message.to_secret = receiver.secret;
  message.value = value;
  std::copy(note.begin(), note.end(), message.note.begin());
  return message;
}

bool decode(std::span<const std::byte> bytes, PeerMessage& message) {
  if (bytes.size() != sizeof(message)) return false;
  std::memcpy(&message, bytes.data(), sizeof(message));
  const auto type = static_cast<std::uint8_t>(message.type);
  return message.magic == PeerMessage::kMagic && message.version == kPeerWireVersion && type >= 1 &&
         type <= static_cast<std::uint8_t>(MessageType::clear) &&
         message.note_bytes <= kNoteBytesMax &&
         (message.type == MessageType::note) == (message.note_bytes > 0);
}

std::string_view cause_of(Stranger stranger) {
  return kStrangerTable[static_cast<std::size_t>(stranger)].cause;
}

bool is_for(const PeerMessage& message, const PeerToken& receiver) {
  return message.to_peer == receiver.peer && crypto::equal(message.to_secret, receiver.secret);
}

}  // namespace kvl
