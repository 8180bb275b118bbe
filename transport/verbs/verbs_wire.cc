// Encoding and checks of offers.
#include "transport/verbs/verbs_wire.h"

#include <infiniband/verbs.h>

#include <algorithm>

#include "transport/base/crc32c.h"
#include "transport/base/wire.h"

namespace kvl::verbs {
namespace {

constexpr std::uint32_t kOfferMagic = 0x4f56564b;  // "KVVO"
constexpr std::uint32_t kNumberMax = 0xFFFFFF;     // of queue pairs and packets

}  // namespace

Blob encode(const Offer& offer) {
  const QueuePairAddress& address = offer.address;
  WireWriter out;
  out.put(kOfferMagic).put(kWireVersion).put(offer.token.peer).raw(offer.token.secret);
  out.put(address.number).put(address.first_psn).raw(address.gid).put(address.lid);
  out.put(address.mtu).put(address.reads_served_max);
  out.put(crc32c(out.view()));
  return out.take();
}

Result<Offer> decode_offer(std::span<const std::byte> blob) {
  WireReader in(blob);
  const bool known =
      in.get<std::uint32_t>() == kOfferMagic && in.get<std::uint16_t>() == kWireVersion;
  Offer offer;
  QueuePairAddress& address = offer.address;
  offer.token.peer = in.get<std::uint64_t>();
  const auto secret = in.raw(offer.token.secret.size());
  std::copy(secret.begin(), secret.end(), offer.token.secret.begin());
  address.number = in.get<std::uint32_t>();
  address.first_psn = in.get<std::uint32_t>();
  const auto gid = in.raw(address.gid.size());
  std::copy(gid.begin(), gid.end(), address.gid.begin());
  address.lid = in.get<std::uint16_t>();
  address.mtu = in.get<std::uint8_t>();
  address.reads_served_max = in.get<std::uint8_t>();
  const auto sum = in.get<std::uint32_t>();
  const bool sound = known && in.finished() &&
                     sum == crc32c(blob.first(blob.size() - sizeof(sum))) &&
                     address.number <= kNumberMax && address.first_psn <= kNumberMax &&
                     address.mtu >= IBV_MTU_256 && address.mtu <= IBV_MTU_4096;
  if (!sound) return Status{Code::invalid_argument, "not a verbs offer of this version"};
  return offer;
}

}  // namespace kvl::verbs
