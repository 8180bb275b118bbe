// A peer that speaks the protocol by hand and lies: each lie ends that peer, or only the memory it
// is about, and nothing else.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <string>

#include "tests/support/log_guard.h"
#include "tests/transport/shm/rogue.h"

namespace kvl::test {
namespace {

using shm::MemoryCard;
using shm::Message;
using shm::MessageType;

double refused_connections(Host& host) {
  struct Count final : MetricVisitor {
    void counter(std::string_view name, std::string_view, const MetricLabels&,
                 double value) override {
      if (name == "kvlane_shm_refused_connections_total") refused += value;  // over all causes
    }
    void gauge(std::string_view, std::string_view, const MetricLabels&, double) override {}
    double refused = 0;
  } count;
  host.link->visit_metrics(count, {});
  return count.refused;
}

TEST(ShmHostile, StrangersAreRefusedAndCounted) {
  const test::ExpectLog log("shm.refused");
  Host victim(Flags{{"shm.connect_timeout_ms", "300"}});
  Rogue rogue(victim);
  const auto refused = [&] { return refused_connections(victim); };
  const auto until_refused = [&](double n) {
    for (int i = 0; i < 100'000 && refused() < n; ++i) victim.poll();
    EXPECT_EQ(refused(), n);
  };
  rogue.dial();  // garbage
  EXPECT_EQ(4, ::send(rogue.socket.get(), "GET ", 4, 0));
  until_refused(1);
  rogue.dial();  // a token that nobody has
  Message wrong = rogue.hello();
  wrong.to = shm::random_token();
  EXPECT_TRUE(send_message(rogue.socket.get(), wrong, rogue.outbox->fd()).ok());
  until_refused(2);
  rogue.dial();  // the right token from somebody whom the offer did not announce
  wrong = rogue.hello();
  wrong.from = shm::random_token();
  EXPECT_TRUE(send_message(rogue.socket.get(), wrong, rogue.outbox->fd()).ok());
  until_refused(3);
  rogue.dial();  // no outbox
  EXPECT_TRUE(send_message(rogue.socket.get(), rogue.hello()).ok());
  until_refused(4);
  rogue.dial();  // silence, until the deadline
  rogue.down();
  until_refused(5);
}

TEST(ShmHostile, AnotherUserIsRefusedWhateverItKnows) {
  const test::ExpectLog log("shm.refused");
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  Host victim;
  Rogue rogue(victim);
  const pid_t child = ::fork();
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    if (::setresuid(kNobody, kNobody, kNobody) != 0) ::_exit(2);
    const auto socket = shm::connect_to(rogue.theirs.name);
    const bool said =
        socket.ok() && send_message(socket->get(), rogue.hello(), rogue.outbox->fd()).ok();
    ::_exit(said ? 0 : 1);
  }
  const SteadyClock clock;
  const std::int64_t deadline = clock.now_ns() + 20'000'000'000;
  while (refused_connections(victim) < 1 && clock.now_ns() < deadline) victim.poll();
  EXPECT_EQ(refused_connections(victim), 1);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) != 2);
  rogue.connect();  // the same words, from us
}

// Nothing of shm has a name in a file system that another user could open.
TEST(ShmHostile, MemoryHasNoName) {
  Host victim;
  Rogue rogue(victim);
  rogue.connect();
  const auto buffer = SharedBuffer::open(kSize).value();
  ASSERT_TRUE(victim.link->add_memory(buffer->memory(Access::remote_all)).ok());
  std::size_t memfds = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
    EXPECT_FALSE(target.starts_with("/dev/shm") || target.starts_with("/tmp")) << target;
    memfds += target.starts_with("/memfd:") ? 1U : 0U;
  }
  EXPECT_GE(memfds, 2U);
}

TEST(ShmHostile, BadOutboxes) {
  const auto attempt = [](int fd) {
    Host victim;
    Rogue rogue(victim);
    rogue.dial();
    EXPECT_TRUE(send_message(rogue.socket.get(), rogue.hello(), fd).ok());
    const ExpectLog expected("shm.peer_corrupt");
    return rogue.down();
  };
  const UniqueFd unsealed = memfd(sizeof(shm::OutboxLayout), 0);
  const UniqueFd small = memfd(4096, F_SEAL_SHRINK);
  const UniqueFd blank = memfd(sizeof(shm::OutboxLayout), F_SEAL_SHRINK);
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(attempt(unsealed.get()), Code::corrupt);
  EXPECT_EQ(attempt(small.get()), Code::corrupt);
  EXPECT_EQ(attempt(blank.get()), Code::corrupt);
  EXPECT_EQ(attempt(null.get()), Code::corrupt);
}

TEST(ShmHostile, OutboxIsReadOnlyForThePeer) {
  Host victim;
  Rogue rogue(victim);
  rogue.connect();
  shm::Received welcome = shm::receive_message(rogue.socket.get());
  ASSERT_EQ(welcome.kind, shm::Received::Kind::message);
  ASSERT_TRUE(welcome.fd);
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, welcome.fd.get(), 0),
            MAP_FAILED);
  EXPECT_NE(::ftruncate(welcome.fd.get(), 0), 0);
  EXPECT_LT(::pwrite(welcome.fd.get(), "x", 1, 128), 0);
}

TEST(ShmHostile, BadRings) {
  const auto attempt = [](auto&& lie) {
    Host victim;
    Rogue rogue(victim);
    rogue.connect();
    // A batch whose note needs room in the rogue's reading.
    Batch batch{.ticket = Ticket{1}, .peer = rogue.me};
    batch.note = bytes_of("hello");
    lie(rogue.outbox->page());
    EXPECT_TRUE(victim.link->post(batch).ok());
    const ExpectLog expected("shm.peer_corrupt");
    const Event end = await(Event::Kind::batch, victim);
    const Code down = rogue.down();
    EXPECT_TRUE(end.code == Code::ok || end.code == Code::corrupt);
    return down;
  };
  EXPECT_EQ(attempt([](shm::OutboxLayout& page) { page.note_head = 257; }), Code::corrupt);
  EXPECT_EQ(attempt([](shm::OutboxLayout& page) { page.note_head = UINT64_MAX; }), Code::corrupt);
  EXPECT_EQ(attempt([](shm::OutboxLayout& page) { page.note_tail = 1; }), Code::corrupt);
  EXPECT_EQ(attempt([](shm::OutboxLayout& page) { page.note_tail = UINT64_MAX / 2; }),
            Code::corrupt);
  EXPECT_EQ(attempt([](shm::OutboxLayout& page) {
              page.notes[0].bytes = 33;
              page.note_head = 1;
            }),
            Code::corrupt);
}

TEST(ShmHostile, BadMessages) {
  const auto attempt = [](const Message& message, std::size_t bytes) {
    Host victim;
    Rogue rogue(victim);
    rogue.connect();
    EXPECT_EQ(static_cast<ssize_t>(bytes),
              ::send(rogue.socket.get(), &message, bytes, MSG_NOSIGNAL));
    const ExpectLog expected("shm.peer_corrupt");
    return rogue.down();
  };
  Message message;
  EXPECT_EQ(attempt(message, 95), Code::corrupt);
  message.version = 2;
  EXPECT_EQ(attempt(message, 96), Code::corrupt);
  message = Message{};
  message.type = static_cast<MessageType>(77);
  EXPECT_EQ(attempt(message, 96), Code::corrupt);
  message.type = MessageType::hello;
  EXPECT_EQ(attempt(message, 96), Code::corrupt);
  message.type = MessageType::memory;
  message.card = card_of(shm::kMemoriesMax);
  EXPECT_EQ(attempt(message, 96), Code::corrupt);
}

TEST(ShmHostile, BadMemoryIsNotMapped) {
  Host victim;
  Rogue rogue(victim);
  rogue.connect();
  const UniqueFd unsealed = memfd(kSize, 0);
  const UniqueFd small = memfd(4096, F_SEAL_SHRINK);
  const UniqueFd good = memfd(kSize, F_SEAL_SHRINK);
  const UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(rogue.announce(card_of(0), unsealed.get()).ok());
  EXPECT_FALSE(rogue.announce(card_of(1), small.get()).ok());
  EXPECT_FALSE(rogue.announce(card_of(2), file.get()).ok());
  EXPECT_FALSE(rogue.announce(card_of(3), -1).ok());
  EXPECT_FALSE(rogue.announce(card_of(4, UINT64_MAX), good.get()).ok());
  MemoryCard card = card_of(5);
  card.offset = 4096;
  EXPECT_FALSE(rogue.announce(card, good.get()).ok());
  card = card_of(6, 100);
  card.offset = 5;
  EXPECT_FALSE(rogue.announce(card, good.get()).ok());
  // The peer lives on, and its good memory is used as long as it says so.
  const Result<RemoteId> remote = rogue.announce(card_of(7), good.get());
  ASSERT_TRUE(remote.ok()) << remote.status().to_string();
  std::vector<std::byte> data(kSize, std::byte{9});
  const MemoryId local =
      victim.add({data.data(), data.size(), MemoryKind::host, 0, Access::local, -1, 0});
  const PageOp op{.bytes = kSize};
  Batch batch{.ticket = Ticket{1}, .peer = rogue.me};
  batch.ops = {&op, 1};
  batch.locals = {&local, 1};
  batch.remotes = {&*remote, 1};
  ASSERT_TRUE(victim.link->post(batch).ok());
  EXPECT_EQ(await(Event::Kind::batch, victim).code, Code::permission);  // not admitted
  rogue.outbox->admit(7, 1);
  ASSERT_TRUE(victim.link->post(batch).ok());
  EXPECT_EQ(await(Event::Kind::batch, victim).code, Code::ok);
}

TEST(ShmHostile, ForeignMemoryAtAnyAddress) {
  Host victim;
  Rogue rogue(victim);
  rogue.connect();
  std::vector<std::byte> data(kSize, std::byte{9});
  const MemoryId local =
      victim.add({data.data(), data.size(), MemoryKind::host, 0, Access::local, -1, 0});
  std::uint32_t index = 0;
  for (const std::uint64_t address : {std::uint64_t{0}, std::uint64_t{1} << 47, UINT64_MAX - 5,
                                      std::uint64_t{0xffffffff80000000}}) {
    MemoryCard card = card_of(index);
    card.path = shm::MemoryPath::foreign;
    card.address = address;
    const Result<RemoteId> remote = rogue.announce(card, -1);
    ASSERT_TRUE(remote.ok()) << remote.status().to_string();
    rogue.outbox->admit(index, 1);
    const PageOp op{.bytes = kSize};
    for (const Direction direction : {Direction::write, Direction::read}) {
      Batch batch{.ticket = Ticket{1}, .peer = rogue.me, .direction = direction};
      batch.ops = {&op, 1};
      batch.locals = {&local, 1};
      batch.remotes = {&*remote, 1};
      ASSERT_TRUE(victim.link->post(batch).ok());
      EXPECT_EQ(await(Event::Kind::batch, victim).code, Code::permission);
    }
    ++index;
  }
}

TEST(ShmHostile, PeerThatNeverLeavesOurMemory) {
  Host victim(Flags{{"shm.close_timeout_ms", "50"}});
  Rogue rogue(victim);
  rogue.connect();
  const auto buffer = std::move(SharedBuffer::open(kSize)).value();
  const MemoryId memory = victim.add(buffer->memory(Access::remote_all));
  ASSERT_TRUE(victim.link->export_memory(memory, rogue.me).ok());
  rogue.outbox->page().touching[3] = 1;
  EXPECT_EQ(victim.link->remove_memory(memory).code(), Code::exhausted);
  const ExpectLog expected("shm.peer_not_fenced");
  victim.link->close_peer(rogue.me);
  EXPECT_EQ(rogue.down(), Code::timed_out);
  EXPECT_EQ(victim.link->remove_memory(memory).code(), Code::exhausted);
  rogue.outbox->page().touching[3] = 0;
  EXPECT_TRUE(victim.link->remove_memory(memory).ok());
}

TEST(ShmHostile, RandomMessages) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const ExpectLog any("shm.");  // all of the warnings may come
  for (int round = 0; round < 200; ++round) {
    Host victim;
    Rogue rogue(victim);
    rogue.connect();
    const UniqueFd fd = memfd(random() % 2 == 0 ? kSize : 4096, random() % 2 == 0 ? 2 : 0);
    for (int i = 0; i < 20; ++i) {
      Message message;
      message.type = static_cast<MessageType>(2 + random() % 5);
      message.card = card_of(random() % 8, random() % (2 * kSize));
      auto* raw = reinterpret_cast<std::byte*>(&message);
      for (std::uint64_t flips = random() % 3; flips > 0; --flips) {
        raw[random() % sizeof(message)] = static_cast<std::byte>(random());
      }
      (void)send_message(rogue.socket.get(), message, random() % 2 == 0 ? fd.get() : -1);
      auto* page = reinterpret_cast<std::byte*>(&rogue.outbox->page());
      page[random() % sizeof(shm::OutboxLayout)] = static_cast<std::byte>(random());
    }
    for (int i = 0; i < 40; ++i) victim.poll();
  }
}

}  // namespace
}  // namespace kvl::test
