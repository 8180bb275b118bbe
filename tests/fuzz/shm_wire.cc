// Offers and memory cards of shm.
#include "transport/shm/shm_wire.h"

#include <algorithm>

#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {

void fuzz_shm_wire(Bytes input) {
  const shm::HostIdentity here{.uid = 1000, .net_namespace = 7};
  if (const auto offer = shm::decode_offer(input, here)) {
    require(std::ranges::equal(shm::encode(*offer), input), "an offer encodes to itself");
  }
  if (const auto card = shm::decode_card(input)) {
    require(card->index < shm::kMemoriesMax, "a card's index is in the table");
    require(card->generation > 0 && card->bytes > 0, "a card names memory");
    require(card->path == shm::MemoryPath::mapped || card->path == shm::MemoryPath::foreign,
            "a card's path is known");
  }
}

Seeds seeds_shm_wire() {
  shm::Offer offer;
  offer.pid = 42;
  offer.host = {.uid = 1000, .net_namespace = 7};
  shm::MemoryCard card;
  card.generation = 1;
  card.bytes = 4096;
  card.access = Access::remote_all;
  const Bytes raw = std::as_bytes(std::span(&card, 1));
  return {shm::encode(offer), {raw.begin(), raw.end()}};
}

}  // namespace kvl::fuzz
