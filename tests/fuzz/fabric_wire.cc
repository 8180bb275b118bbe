// Names of memory, messages and offers of transports over fabrics.
#include "transport/libfabric/fabric_wire.h"

#include <infiniband/verbs.h>

#include <algorithm>

#include "tests/fuzz/fuzz.h"
#include "transport/fabric/peer_wire.h"
#include "transport/verbs/verbs_wire.h"

namespace kvl::fuzz {
namespace {

PeerToken token() {
  PeerToken made;
  made.peer = 7;
  made.secret.fill(std::byte{0x5A});
  return made;
}

}  // namespace

void fuzz_fabric_wire(Bytes input) {
  if (const auto name = decode_name(input)) {
    require(name->bytes > 0 && name->base + name->bytes > name->base, "a name is a range");
    for (const std::uint64_t offset : {std::uint64_t{0}, name->bytes / 2, name->bytes - 1}) {
      [[maybe_unused]] const std::uint64_t key = name->key_at(offset);  // there is one
      require(name->stretch_at(offset) > 0, "a byte is in one registration");
    }
    if (sealed_by(input, token())) {
      require(std::ranges::equal(encode(*name, token()), input), "a name encodes to itself");
    }
  }
  PeerMessage message;
  if (decode(input, message)) {
    require(message.note_bytes <= message.note.size(), "a note is no longer than its buffer");
  }
  if (const auto offer = verbs::decode_offer(input)) {
    require(std::ranges::equal(verbs::encode(*offer), input), "an offer encodes to itself");
    require(offer->address.mtu >= IBV_MTU_256 && offer->address.mtu <= IBV_MTU_4096, "an MTU");
  }
  if (const auto offer = decode_offer(input, libfabric::kAddressBytesMax)) {
    require(std::ranges::equal(encode(*offer), input), "an offer encodes to itself");
  }
}

Seeds seeds_fabric_wire() {
  RemoteName name;
  name.access = Access::remote_all;
  name.base = 0x7000;
  name.bytes = 4096;
  RemoteName parts = name;
  parts.bytes = 3 * kPartBytesMin - 7;
  parts.part_bytes = kPartBytesMin;
  parts.more_keys = {2, 3};
  const std::array<std::byte, 3> note{};
  const PeerMessage message = message_to(token(), MessageType::note, 0, note);
  const Bytes raw = std::as_bytes(std::span(&message, 1));
  verbs::Offer queue_pair{token(), {}};
  queue_pair.address.mtu = IBV_MTU_4096;
  PeerOffer address;
  address.token = token();
  address.address.resize(16);
  return {encode(name, token()),
          encode(parts, token()),
          {raw.begin(), raw.end()},
          verbs::encode(queue_pair),
          encode(address)};
}

}  // namespace kvl::fuzz
