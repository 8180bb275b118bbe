// Encoding and checks of what Links exchange.
#include "transport/libfabric/fabric_wire.h"

#include <algorithm>
#include <cstring>

#include "transport/base/crc32c.h"
#include "transport/base/crypto.h"
#include "transport/base/wire.h"

namespace kvl::libfabric {
namespace {

constexpr std::uint32_t kOfferMagic = 0x4f46564b;  // "KVFO"
constexpr std::uint32_t kNameMagic = 0x5246564b;   // "KVFR"
constexpr std::size_t kSealBytes = 16;
constexpr std::size_t kNameBytes = 4 + 2 + 1 + 4 * 8 + kSealBytes;

crypto::Digest seal_of(std::span<const std::byte> name, const Token& owner) {
  return crypto::hmac(owner.secret, {name});
}

}  // namespace

Blob encode(const Offer& offer) {
  WireWriter out;
  out.put(kOfferMagic).put(kWireVersion).put(offer.token.peer).raw(offer.token.secret);
  out.put(offer.address_format).blob(offer.address);
  out.put(crc32c(out.view()));
  return out.take();
}

Result<Offer> decode_offer(std::span<const std::byte> blob) {
  WireReader in(blob);
  const bool known =
      in.get<std::uint32_t>() == kOfferMagic && in.get<std::uint16_t>() == kWireVersion;
  Offer offer;
  offer.token.peer = in.get<std::uint64_t>();
  const auto secret = in.raw(offer.token.secret.size());
  std::copy(secret.begin(), secret.end(), offer.token.secret.begin());
  offer.address_format = in.get<std::uint32_t>();
  const auto address = in.blob(kAddressBytesMax);
  offer.address.assign(address.begin(), address.end());
  const auto sum = in.get<std::uint32_t>();
  if (!known || !in.finished() || sum != crc32c(blob.first(blob.size() - sizeof(sum)))) {
    return Status{Code::invalid_argument, "not a libfabric offer of this version"};
  }
  return offer;
}

Blob encode(const RemoteName& name, const Token& owner) {
  WireWriter out;
  out.put(kNameMagic).put(kWireVersion).put(name.access).put(name.serial).put(name.key);
  out.put(name.base).put(name.bytes);
  const crypto::Digest seal = seal_of(out.view(), owner);
  out.raw(std::span(seal).first(kSealBytes));
  return out.take();
}

Result<RemoteName> decode_name(std::span<const std::byte> blob) {
  WireReader in(blob);
  const bool known =
      in.get<std::uint32_t>() == kNameMagic && in.get<std::uint16_t>() == kWireVersion;
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
    return Status{Code::invalid_argument, "not a libfabric memory of this version"};
  }
  return name;
}

bool sealed_by(std::span<const std::byte> blob, const Token& owner) {
  if (blob.size() != kNameBytes) return false;
  const crypto::Digest seal = seal_of(blob.first(blob.size() - kSealBytes), owner);
  return crypto::equal(std::span(seal).first(kSealBytes), blob.last(kSealBytes));
}

bool decode(std::span<const std::byte> bytes, Message& message) {
  if (bytes.size() != sizeof(message)) return false;
  std::memcpy(&message, bytes.data(), sizeof(message));
  const auto type = static_cast<std::uint8_t>(message.type);
  return message.magic == Message::kMagic && message.version == kWireVersion && type >= 1 &&
         type <= static_cast<std::uint8_t>(MessageType::nothing) &&
         message.note_bytes <= kNoteBytesMax &&
         (message.type == MessageType::note) == (message.note_bytes > 0);
}

}  // namespace kvl::libfabric
