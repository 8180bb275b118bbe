// Encoding and checks of what Links over fabrics exchange.
#include "transport/fabric/peer_wire.h"

#include <algorithm>
#include <cstring>

#include "transport/base/crc32c.h"
#include "transport/base/crypto.h"
#include "transport/base/ordered_table.h"
#include "transport/base/wire.h"

namespace kvl {
namespace {

constexpr std::uint32_t kOfferMagic = 0x4f46564b;  // "KVFO"
constexpr std::uint32_t kNameMagic = 0x5246564b;   // "KVFR"

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

Blob encode(const PeerOffer& offer) {
  WireWriter out;
  out.put(kOfferMagic).put(kPeerWireVersion).put(offer.token.peer).raw(offer.token.secret);
  out.put(offer.address_format).blob(offer.address);
  out.put(crc32c(out.view()));
  return out.take();
}

Result<PeerOffer> decode_offer(std::span<const std::byte> blob, std::size_t address_bytes_max) {
  WireReader in(blob);
  const bool known =
      in.get<std::uint32_t>() == kOfferMagic && in.get<std::uint16_t>() == kPeerWireVersion;
  PeerOffer offer;
  offer.token.peer = in.get<std::uint64_t>();
  const auto secret = in.raw(offer.token.secret.size());
  std::copy(secret.begin(), secret.end(), offer.token.secret.begin());
  offer.address_format = in.get<std::uint32_t>();
  const auto address = in.blob(address_bytes_max);
  offer.address.assign(address.begin(), address.end());
  const auto sum = in.get<std::uint32_t>();
  if (!known || !in.finished() || sum != crc32c(blob.first(blob.size() - sizeof(sum)))) {
    return Status{Code::invalid_argument, "not an offer of this transport and version"};
  }
  return offer;
}

Blob encode(const RemoteName& name, const PeerToken& owner) {
  WireWriter out;
  out.put(kNameMagic).put(kPeerWireVersion).put(name.access).put(name.serial).put(name.key);
  out.put(name.base).put(name.bytes).put(name.part_bytes);
  for (const std::uint64_t key : name.more_keys) out.put(key);
  return seal(out.view(), owner);
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
  name.part_bytes = in.get<std::uint64_t>();
  if (name.part_bytes != 0) {
    const std::uint64_t more = name.bytes == 0 ? 0 : (name.bytes - 1) / name.part_bytes;
    if (name.part_bytes < kPartBytesMin || more == 0 || more >= kPartsMax) {
      return Status{Code::invalid_argument, "a name of memory in impossible parts"};
    }
    for (std::uint64_t i = 0; i < more; ++i) name.more_keys.push_back(in.get<std::uint64_t>());
  }
  in.raw(kSealBytes);
  std::uint64_t end = 0;
  if (!known || !in.finished() || static_cast<std::uint8_t>(name.access) > 3 || name.bytes == 0 ||
      __builtin_add_overflow(name.base, name.bytes, &end)) {
    return Status{Code::invalid_argument, "not a name of memory of this version"};
  }
  return name;
}

Blob seal(std::span<const std::byte> name, const PeerToken& owner) {
  Blob blob(name.begin(), name.end());
  const crypto::Digest digest = seal_of(name, owner);
  blob.insert(blob.end(), digest.begin(), digest.begin() + kSealBytes);
  return blob;
}

bool sealed_by(std::span<const std::byte> blob, const PeerToken& owner) {
  if (blob.size() < kSealBytes) return false;
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
         type <= static_cast<std::uint8_t>(MessageType::freed) &&
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
