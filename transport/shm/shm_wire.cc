// Encoding of offers and memory cards.
#include "transport/shm/shm_wire.h"

#include <cstring>

#include "transport/base/wire.h"

namespace kvl::shm {

Blob encode(const Offer& offer) {
  WireWriter out;
  out.put(kOfferMagic).put(kWireVersion).raw(offer.name).raw(offer.token).put(offer.pid);
  out.raw(offer.host.boot_id).put(offer.host.uid).put(offer.host.net_namespace);
  return out.take();
}

Result<Offer> decode_offer(std::span<const std::byte> blob, const HostIdentity& here) {
  WireReader in(blob);
  const auto token = [&in](Token& to) {
    const auto part = in.raw(to.size());
    if (part.size() == to.size()) std::memcpy(to.data(), part.data(), to.size());
  };
  const bool known =
      in.get<std::uint32_t>() == kOfferMagic && in.get<std::uint16_t>() == kWireVersion;
  Offer offer;
  token(offer.name);
  token(offer.token);
  offer.pid = in.get<std::int32_t>();
  token(offer.host.boot_id);
  offer.host.uid = in.get<std::uint32_t>();
  offer.host.net_namespace = in.get<std::uint64_t>();
  if (!known || !in.finished()) {
    return Status{Code::invalid_argument, "not an shm offer of this version"};
  }
  if (offer.host != here) {
    return Status{Code::unsupported, "shm peer of another boot, user or network namespace"};
  }
  return offer;
}

Result<MemoryCard> decode_card(std::span<const std::byte> blob) {
  MemoryCard card;
  if (blob.size() != sizeof(card)) return Status{Code::invalid_argument, "not an shm memory"};
  std::memcpy(&card, blob.data(), sizeof(card));
  const auto path = static_cast<std::uint8_t>(card.path);
  if (card.magic != kMemoryMagic || card.version != kWireVersion || path < 1 || path > 2 ||
      static_cast<std::uint8_t>(card.access) > 3 || card.index >= kMemoriesMax ||
      card.generation == 0 || card.bytes == 0) {
    return Status{Code::invalid_argument, "not an shm memory of this version"};
  }
  return card;
}

}  // namespace kvl::shm
