// A peer that speaks the protocol by hand and says whatever a test wants it to say.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>

#include <optional>

#include "tests/transport/shm/pair.h"
#include "transport/base/unique_fd.h"
#include "transport/shm/shm_outbox.h"
#include "transport/shm/shm_socket.h"
#include "transport/shm/shm_wire.h"

namespace kvl::test {

inline constexpr std::uint64_t kSize = 64 << 10;

// The liar. It dials `victim`, so that the victim is passive.
struct Rogue {
  explicit Rogue(Host& host) : victim(host) {
    me = *victim.link->open_peer(PeerRole::passive);
    const shm::HostIdentity here = *shm::host_identity();
    theirs = *shm::decode_offer(*victim.link->offer(me), here);
    mine.name = shm::random_token();
    mine.token = shm::random_token();
    mine.host = here;
    EXPECT_TRUE(victim.link->accept(me, shm::encode(mine)).ok());
    outbox.emplace(std::move(shm::Outbox::open()).value());
  }
  shm::Message hello() const {
    shm::Message message;
    message.type = shm::MessageType::hello;
    message.to = theirs.token;
    message.from = mine.token;
    message.probe_address = reinterpret_cast<std::uintptr_t>(mine.token.data());
    return message;
  }
  void dial() { socket = std::move(shm::connect_to(theirs.name)).value(); }
  // A proper beginning.
  void connect() {
    dial();
    EXPECT_TRUE(send_message(socket.get(), hello(), outbox->fd()).ok());
    EXPECT_EQ(await(Event::Kind::peer_up, victim).peer, me);
  }
  Code down() { return await(Event::Kind::peer_down, victim).code; }
  // One card of memory that is the rogue's, and the victim's name for it.
  Result<RemoteId> announce(const shm::MemoryCard& card, int fd) {
    shm::Message message;
    message.type = shm::MessageType::memory;
    message.card = card;
    EXPECT_TRUE(send_message(socket.get(), message, fd).ok());
    const auto* raw = reinterpret_cast<const std::byte*>(&card);
    return victim.link->import_memory(me, {raw, sizeof(card)});
  }

  Host& victim;
  PeerId me;
  shm::Offer theirs, mine;
  std::optional<shm::Outbox> outbox;
  UniqueFd socket;
};

inline shm::MemoryCard card_of(std::uint32_t index, std::uint64_t bytes = kSize) {
  shm::MemoryCard card;
  card.access = Access::remote_all;
  card.index = index;
  card.generation = 1;
  card.bytes = bytes;
  return card;
}

inline UniqueFd memfd(std::uint64_t bytes, int seals) {
  UniqueFd fd(::memfd_create("rogue", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(0, ::ftruncate(fd.get(), static_cast<off_t>(bytes)));
  EXPECT_EQ(0, ::fcntl(fd.get(), F_ADD_SEALS, seals));
  return fd;
}

}  // namespace kvl::test
