// Offers, memory names and frame headers of tcp.
#include "transport/tcp/tcp_wire.h"

#include <algorithm>

#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {

void fuzz_tcp_wire(Bytes input) {
  if (const auto offer = tcp::decode_offer(input)) {
    require(offer->lanes >= 1 && offer->lanes <= tcp::kLanesMax, "lanes are in range");
    require(offer->addresses.size() <= tcp::kOfferAddressesMax, "addresses are bounded");
    const auto again = tcp::decode_offer(tcp::encode(*offer));
    require(again.ok() && tcp::encode(*again) == tcp::encode(*offer), "an offer survives a trip");
    for (const SocketAddress& address : offer->addresses) {
      const auto parsed = parse_address(address.text());
      require(parsed.ok() && parsed->text() == address.text(), "an offered address has a text");
    }
  }
  if (const auto name = tcp::decode_memory(input)) {
    require(tcp::encode(*name).size() == input.size(), "a memory name has one length");
    const auto again = tcp::decode_memory(tcp::encode(*name));
    require(again.ok() && again->memory == name->memory && again->bytes == name->bytes &&
                again->access == name->access,
            "a memory name survives a trip");
  }
  if (input.size() >= sizeof(tcp::FrameHeader)) {
    const auto header = tcp::read_wire<tcp::FrameHeader>(input.data());
    const std::size_t bytes = tcp::head_bytes(header);
    require(bytes == 0 || (bytes >= sizeof(header) && bytes <= tcp::kHeadBytesMax),
            "a header block fits its buffer");
    require(tcp::code_from_wire(header.reserved) <= Code::internal, "codes are known");
  }
}

Seeds seeds_tcp_wire() {
  tcp::Offer offer;
  offer.lanes = 4;
  offer.token[3] = std::byte{9};
  for (const char* text : {"10.1.2.3:4711", "[fe80::1]:1"}) {
    offer.addresses.push_back(*parse_address(text));
  }
  Seeds seeds{tcp::encode(offer), tcp::encode(tcp::MemoryName{5, 1 << 20, Access::remote_all})};
  for (const tcp::FrameType type : {tcp::FrameType::write, tcp::FrameType::read_request,
                                    tcp::FrameType::read_done, tcp::FrameType::ack}) {
    tcp::FrameHeader header;
    header.type = type;
    header.count = type == tcp::FrameType::read_done ? 0 : 3;
    const Bytes raw = std::as_bytes(std::span(&header, 1));
    seeds.emplace_back(raw.begin(), raw.end());
  }
  return seeds;
}

}  // namespace kvl::fuzz
