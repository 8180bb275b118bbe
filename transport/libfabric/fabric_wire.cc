// Encoding and checks of offers.
#include "transport/libfabric/fabric_wire.h"

#include <algorithm>

#include "transport/base/crc32c.h"
#include "transport/base/wire.h"

namespace kvl::libfabric {
namespace {

constexpr std::uint32_t kOfferMagic = 0x4f46564b;  // "KVFO"

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

}  // namespace kvl::libfabric
