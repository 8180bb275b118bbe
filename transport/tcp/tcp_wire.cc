// Encoding and checking of offers, memory names and header blocks.
#include "transport/tcp/tcp_wire.h"

#include <netinet/in.h>

#include "transport/base/wire.h"

namespace kvl::tcp {
namespace {

constexpr std::uint8_t kIpv4 = 4;
constexpr std::uint8_t kIpv6 = 6;

}  // namespace

std::size_t head_bytes(const FrameHeader& header) {
  if (header.magic != kFrameMagic || header.reserved != 0) return 0;
  switch (header.type) {
    case FrameType::write:
      if (header.count > kFrameRunsMax || header.data_bytes > kFrameBytesMax) return 0;
      if (header.note_bytes > kNoteBytesMax || header.flags > (kFlagEnd | kFlagAbandoned)) return 0;
      // A note belongs to the end of a batch that was not given up.
      if (header.note_bytes > 0 && header.flags != kFlagEnd) return 0;
      if (header.flags == kFlagAbandoned) return 0;
      return sizeof(header) + header.count * sizeof(WireRun) + header.note_bytes;
    case FrameType::read_request:
      if (header.count > kFrameRunsMax || header.data_bytes > kFrameBytesMax) return 0;
      return sizeof(header) + header.count * sizeof(WireRun);
    case FrameType::read_data:
    case FrameType::read_done:
      return header.data_bytes > kFrameBytesMax || header.count != 0 ? 0 : sizeof(header);
    case FrameType::ack:
      if (header.count > kFrameAcksMax || header.count == 0 || header.data_bytes != 0) return 0;
      return sizeof(header) + header.count * sizeof(WireAck);
  }
  return 0;
}

Code code_from_wire(std::uint32_t value) {
  return value <= static_cast<std::uint32_t>(Code::internal) ? static_cast<Code>(value)
                                                             : Code::internal;
}

bool same_token(const Token& a, const Token& b) {
  unsigned difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference |= std::to_integer<unsigned>(a[i]) ^ std::to_integer<unsigned>(b[i]);
  }
  return difference == 0;
}

Blob encode(const Offer& offer) {
  WireWriter out;
  out.put(kOfferMagic).put(kWireVersion).put(offer.lanes);
  out.raw(offer.token).raw(offer.host);
  out.put(static_cast<std::uint16_t>(offer.addresses.size()));
  for (const SocketAddress& address : offer.addresses) {
    std::array<std::byte, 16> raw{};
    const bool v6 = address.family() == AF_INET6;
    if (v6) {
      const auto* const in6 = reinterpret_cast<const sockaddr_in6*>(&address.storage);
      std::memcpy(raw.data(), &in6->sin6_addr, 16);
    } else {
      const auto* const in4 = reinterpret_cast<const sockaddr_in*>(&address.storage);
      std::memcpy(raw.data(), &in4->sin_addr, 4);
    }
    out.put(v6 ? kIpv6 : kIpv4).put(std::uint8_t{0}).put(address.port()).raw(raw);
  }
  return out.take();
}

Result<Offer> decode_offer(std::span<const std::byte> bytes) {
  constexpr Status kBad{Code::invalid_argument, "not an offer of tcp, or of another version"};
  WireReader in(bytes);
  if (in.get<std::uint32_t>() != kOfferMagic || in.get<std::uint16_t>() != kWireVersion)
    return kBad;
  Offer offer;
  offer.lanes = in.get<std::uint16_t>();
  const auto token = in.raw(offer.token.size());
  const auto host = in.raw(offer.host.size());
  const auto count = in.get<std::uint16_t>();
  if (!in.ok() || count > kOfferAddressesMax || offer.lanes == 0 || offer.lanes > kLanesMax) {
    return kBad;
  }
  std::copy(token.begin(), token.end(), offer.token.begin());
  std::copy(host.begin(), host.end(), offer.host.begin());
  for (std::uint16_t i = 0; i < count; ++i) {
    const auto family = in.get<std::uint8_t>();
    in.get<std::uint8_t>();
    const auto port = in.get<std::uint16_t>();
    const auto raw = in.raw(16);
    if (!in.ok() || (family != kIpv4 && family != kIpv6) || port == 0) return kBad;
    SocketAddress address;
    if (family == kIpv6) {
      auto* const in6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
      in6->sin6_family = AF_INET6;
      in6->sin6_port = htons(port);
      std::memcpy(&in6->sin6_addr, raw.data(), 16);
      address.bytes = sizeof(sockaddr_in6);
    } else {
      auto* const in4 = reinterpret_cast<sockaddr_in*>(&address.storage);
      in4->sin_family = AF_INET;
      in4->sin_port = htons(port);
      std::memcpy(&in4->sin_addr, raw.data(), 4);
      address.bytes = sizeof(sockaddr_in);
    }
    offer.addresses.push_back(address);
  }
  if (!in.finished()) return kBad;
  return offer;
}

Blob encode(const MemoryName& name) {
  WireWriter out;
  out.put(kMemoryMagic).put(kWireVersion).put(name.access).put(std::uint8_t{0});
  out.put(name.memory).put(name.bytes);
  return out.take();
}

Result<MemoryName> decode_memory(std::span<const std::byte> bytes) {
  constexpr Status kBad{Code::invalid_argument, "not a memory name of tcp, or of another version"};
  WireReader in(bytes);
  if (in.get<std::uint32_t>() != kMemoryMagic || in.get<std::uint16_t>() != kWireVersion)
    return kBad;
  MemoryName name;
  const auto access = in.get<std::uint8_t>();
  in.get<std::uint8_t>();
  name.memory = in.get<std::uint64_t>();
  name.bytes = in.get<std::uint64_t>();
  if (!in.finished() || access > static_cast<std::uint8_t>(Access::remote_all)) return kBad;
  name.access = static_cast<Access>(access);
  return name;
}

}  // namespace kvl::tcp
