// A peer of shm that keeps to the beginning and then sends what it likes over the socket, with and
// without descriptors, and scribbles over its control page: memory that it was not given stays.
#include <fcntl.h>

#include <deque>

#include "tests/fuzz/fuzz.h"
#include "tests/transport/shm/rogue.h"

namespace kvl::fuzz {
namespace {

enum class Step : std::uint8_t { message, raw, page, import, write, read, poll, count };

struct Scene {
  explicit Scene(test::Host& host) : rogue(host) {
    rogue.connect();
    sealed = test::memfd(test::kSize, F_SEAL_SHRINK);
    open = test::memfd(4096, 0);
  }
  // Of the victim, towards memory that the rogue has announced.
  void post(test::Host& host, Direction direction, RemoteId remote, MemoryId local) {
    // What a batch names stays until its end.
    Named& kept = named.emplace_back(Named{{.bytes = 4096}, local, remote});
    Batch batch{.ticket = Ticket{named.size()}, .peer = rogue.me, .direction = direction};
    batch.ops = {&kept.op, 1};
    batch.locals = {&kept.local, 1};
    batch.remotes = {&kept.remote, 1};
    batch.note =
        direction == Direction::write ? test::bytes_of("note") : std::span<const std::byte>{};
    (void)host.link->post(batch);
  }
  test::Rogue rogue;
  UniqueFd sealed, open;
  struct Named {
    PageOp op;
    MemoryId local;
    RemoteId remote;
  };
  std::deque<Named> named;
};

void take_step(test::Host& host, Scene& scene, Input& parts, RemoteId& remote, MemoryId local) {
  const auto step = parts.number<std::uint8_t>();
  const int fds[] = {-1, scene.sealed.get(), scene.open.get()};
  const int socket = scene.rogue.socket.get();
  switch (static_cast<Step>(step % static_cast<unsigned>(Step::count))) {
    case Step::message: {  // well framed, the rest is the input's
      shm::Message message;
      message.type = parts.number<shm::MessageType>();
      message.card.index = parts.number<std::uint16_t>();
      message.card.generation = parts.number<std::uint8_t>();
      message.card.access = parts.number<Access>();
      message.card.path = parts.number<shm::MemoryPath>();
      message.card.bytes = parts.number<std::uint32_t>();
      message.card.offset = parts.number<std::uint32_t>();
      message.card.address = parts.number<std::uint64_t>();
      (void)send_message(socket, message, fds[parts.number<std::uint8_t>() % 3]);
      break;
    }
    case Step::raw: {
      const Bytes bytes = parts.bytes(parts.number<std::uint8_t>());
      (void)::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      break;
    }
    case Step::page: {
      const std::size_t at = parts.number<std::uint16_t>() % (sizeof(shm::OutboxLayout) - 8);
      const auto value = parts.number<std::uint64_t>();
      std::memcpy(reinterpret_cast<std::byte*>(&scene.rogue.outbox->page()) + at, &value, 8);
      break;
    }
    case Step::import: {
      shm::MemoryCard card = test::card_of(parts.number<std::uint8_t>());
      card.bytes = parts.number<std::uint32_t>();
      card.path = parts.number<shm::MemoryPath>();
      card.address = parts.number<std::uint64_t>();
      shm::Message message;
      message.type = shm::MessageType::memory;
      message.card = card;
      (void)send_message(socket, message, fds[parts.number<std::uint8_t>() % 3]);
      const auto* const raw = reinterpret_cast<const std::byte*>(&card);
      if (const auto id = host.link->import_memory(scene.rogue.me, {raw, sizeof(card)})) {
        remote = *id;
        scene.rogue.outbox->admit(card.index, card.generation);
      }
      break;
    }
    case Step::write:
      return scene.post(host, Direction::write, remote, local);
    case Step::read:
      return scene.post(host, Direction::read, remote, local);
    default:
      return host.poll();
  }
}

}  // namespace

void fuzz_shm_link(Bytes input) {
  if (input.size() > 2048) return;
  test::Host host(test::Flags{{"shm.close_timeout_ms", "1"}});
  const auto secret = std::move(SharedBuffer::open(test::kSize)).value();
  test::fill(secret->data(), test::kSize, 7);
  const std::vector<std::byte> before(secret->data(), secret->data() + test::kSize);
  const MemoryId given = host.add(secret->memory(Access::remote_read));
  std::vector<std::byte> target(4096);
  const MemoryId local =
      host.add({target.data(), target.size(), MemoryKind::host, 0, Access::local, -1, 0});
  {
    Scene scene(host);
    (void)host.link->export_memory(given, scene.rogue.me);
    Input parts(input);
    RemoteId remote;
    while (!parts.empty()) take_step(host, scene, parts, remote, local);
    for (int i = 0; i < 4; ++i) host.poll();
    host.link->close_peer(scene.rogue.me);
    scene.rogue.outbox->page().touching[0] = 0;
    const SteadyClock clock;
    const std::int64_t deadline = clock.now_ns() + test::kPatienceNs;
    while (!host.take(Event::Kind::peer_down)) {
      host.poll();
      require(clock.now_ns() < deadline, "a peer that lies is let go of");
    }
  }
  require(std::equal(before.begin(), before.end(), secret->data()), "other memory is as it was");
}

Seeds seeds_shm_link() {
  const auto byte = [](Step step) { return static_cast<std::byte>(step); };
  const std::byte write = byte(Step::write), read = byte(Step::read), poll = byte(Step::poll);
  // import: index, bytes, path, address, descriptor.
  const auto import = join({std::vector{byte(Step::import), std::byte{3}},
                            seed(std::string_view("\0\0\1\0\1\0\0\0\0\0\0\0\0\1", 14))});
  const auto page =
      join({std::vector{byte(Step::page)}, seed(std::string_view("\x40\0\x02\0\0\0\0\0\0\0", 10))});
  const auto goodbye =
      join({std::vector{byte(Step::message)}, seed(std::string_view("\x06\0", 2))});
  const Bytes w(&write, 1), r(&read, 1), p(&poll, 1);
  return {join({import, p, w, p, r, p}), join({page, p}), join({w, p, goodbye, p}),
          join({std::vector{byte(Step::raw), std::byte{3}}, seed("abc"), p})};
}

}  // namespace kvl::fuzz
