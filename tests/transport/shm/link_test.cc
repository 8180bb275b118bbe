// Links within one process: connecting, notes and their ring, sleep, closing, what is released.
#include <poll.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/transport/shm/pair.h"
#include "transport/shm/shm_peer.h"

namespace kvl::test {
namespace {

std::size_t open_descriptors() {
  const auto all = std::filesystem::directory_iterator("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}
std::size_t mappings() {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("memfd:") != line.npos;
  return count;
}

TEST(ShmLink, MemoryExportedAndBatchesPostedBeforePeerUp) {
  Host a, b;
  Buffer source(true), target(true);
  fill(source.data, kBytes, 7);
  const MemoryId local = a.add(source.memory(Access::local));
  const MemoryId memory = b.add(target.memory(Access::remote_all));
  const PeerId to_b = *a.link->open_peer(PeerRole::active);
  const PeerId to_a = *b.link->open_peer(PeerRole::passive);
  const Result<RemoteId> remote = a.link->import_memory(to_b, *b.link->export_memory(memory, to_a));
  ASSERT_TRUE(remote.ok());
  const PageOp op{.bytes = kPage};
  for (std::uint64_t i = 1; i <= 5; ++i) {
    Batch batch{.ticket = Ticket{i}, .peer = to_b};
    batch.ops = {&op, 1};
    batch.locals = {&local, 1};
    batch.remotes = {&*remote, 1};
    batch.note = bytes_of(std::string_view("12345").substr(i - 1, 1));
    ASSERT_TRUE(a.link->post(batch).ok());
  }
  // The active side dials before the passive side has accepted: its hello waits.
  ASSERT_TRUE(a.link->accept(to_b, *b.link->offer(to_a)).ok());
  for (int i = 0; i < 10; ++i) {
    a.poll();
    b.poll();
  }
  EXPECT_TRUE(a.events.empty());
  ASSERT_TRUE(b.link->accept(to_a, *a.link->offer(to_b)).ok());
  for (char c = '1'; c <= '5'; ++c) {
    const Event note = await(Event::Kind::note, b, a);
    ASSERT_EQ(note.note_bytes, 1);
    EXPECT_EQ(static_cast<char>(note.note[0]), c);
  }
  EXPECT_EQ(0, std::memcmp(source.data, target.data, kPage));
}

TEST(ShmLink, NobodyListens) {
  Blob offer;
  {
    Host gone;
    offer = *gone.link->offer(*gone.link->open_peer(PeerRole::passive));
  }
  Host a(Flags{{"shm.connect_timeout_ms", "200"}});
  const PeerId peer = *a.link->open_peer(PeerRole::active);
  ASSERT_TRUE(a.link->accept(peer, offer).ok());
  EXPECT_EQ(await(Event::Kind::peer_down, a).code, Code::unavailable);
  // The passive side gives up by its deadline.
  const PeerId waits = *a.link->open_peer(PeerRole::passive);
  ASSERT_TRUE(a.link->accept(waits, offer).ok());
  EXPECT_EQ(await(Event::Kind::peer_down, a).code, Code::timed_out);
}

TEST(ShmLink, FullRingOfNotesWaitsAndLosesNone) {
  Pair pair;
  constexpr std::uint32_t kNotes = 900;
  for (std::uint32_t i = 0; i < kNotes; ++i) {
    Batch batch{.ticket = Ticket{i + 1U}, .peer = pair.to_b};
    batch.note = std::as_bytes(std::span(&i, 1));
    ASSERT_TRUE(pair.a.link->post(batch).ok());
  }
  for (int i = 0; i < 200; ++i) pair.a.poll();
  EXPECT_LT(pair.a.events.size(), kNotes);
  for (std::uint32_t i = 0; i < kNotes; ++i) {
    const Event note = await(Event::Kind::note, pair.b, pair.a);
    std::uint32_t value = 0;
    std::memcpy(&value, note.note.data(), sizeof(value));
    ASSERT_EQ(value, i);
  }
  for (std::uint32_t i = 0; i < kNotes; ++i) {
    ASSERT_EQ(await(Event::Kind::batch, pair.a, pair.b).code, Code::ok);
  }
}

TEST(ShmLink, SleeperIsWokenByNoteByRoomAndByClose) {
  Pair pair;
  const auto asleep = [](Host& host) {
    while (!host.link->arm()) host.poll();
    pollfd entry{host.link->wait_fd(), POLLIN, 0};
    return ::poll(&entry, 1, 0) == 0;
  };
  const auto woken = [](Host& host) {
    pollfd entry{host.link->wait_fd(), POLLIN, 0};
    return ::poll(&entry, 1, 5000) == 1;
  };
  const auto post = [&](std::uint64_t n) {
    Batch batch{.ticket = Ticket{n}, .peer = pair.to_b};
    batch.note = bytes_of("x");
    ASSERT_TRUE(pair.a.link->post(batch).ok());
  };
  for (std::uint64_t round = 1; round <= 3; ++round) {
    EXPECT_TRUE(asleep(pair.b));
    post(round);
    await(Event::Kind::batch, pair.a);
    EXPECT_TRUE(woken(pair.b));
    await(Event::Kind::note, pair.b);
  }
  for (std::uint64_t n = 10; n < 10 + 300; ++n) post(n);
  for (int i = 0; i < 300; ++i) pair.a.poll();
  EXPECT_TRUE(asleep(pair.a));  // 256 went, the ring is full
  pair.b.poll();
  EXPECT_TRUE(woken(pair.a));
  for (int i = 0; i < 300; ++i) await(Event::Kind::note, pair.b, pair.a);
  for (int i = 0; i < 300; ++i) await(Event::Kind::batch, pair.a);
  EXPECT_TRUE(asleep(pair.b));
  pair.a.link->close_peer(pair.to_b);
  await(Event::Kind::peer_down, pair.a);
  EXPECT_TRUE(woken(pair.b));
  EXPECT_EQ(await(Event::Kind::peer_down, pair.b).code, Code::peer_lost);
}

TEST(ShmLink, ClosedTargetIsShutAtOnce) {
  Pair pair;
  Buffer source(true, 16 << 20), target(true, 16 << 20);
  fill(source.data, source.bytes, 3);
  const MemoryId local = pair.a.add(source.memory(Access::local));
  const RemoteId remote = pair.import(pair.b.add(target.memory(Access::remote_all)));
  const PageOp op{.bytes = 16 << 20};
  Batch batch{.ticket = Ticket{1}, .peer = pair.to_b};
  batch.ops = {&op, 1};
  batch.locals = {&local, 1};
  batch.remotes = {&remote, 1};
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  pair.a.poll();
  pair.b.link->close_peer(pair.to_a);
  EXPECT_EQ(await(Event::Kind::peer_down, pair.b).code, Code::aborted);
  // The initiator has not polled since and knows nothing; what it does now must not land.
  std::vector<std::byte> before(target.data, target.data + target.bytes);
  const Event end = await(Event::Kind::batch, pair.a);
  EXPECT_EQ(end.code, Code::peer_lost);
  EXPECT_GT(end.bytes_done, 0U);
  EXPECT_LT(end.bytes_done, target.bytes);
  EXPECT_EQ(await(Event::Kind::peer_down, pair.a).code, Code::peer_lost);
  EXPECT_EQ(0, std::memcmp(before.data(), target.data, target.bytes));
  EXPECT_EQ(pair.a.link->post(batch).code(), Code::invalid_argument);
}

TEST(ShmLink, EverythingIsReleased) {
  const std::size_t descriptors = open_descriptors();
  const std::size_t maps = mappings();
  for (int round = 0; round < 3; ++round) {
    Pair pair;
    Buffer source(true), shared(true), foreign(false);
    const MemoryId local = pair.a.add(source.memory(Access::local));
    const MemoryId shared_id = pair.b.add(shared.memory(Access::remote_all));
    const std::array<RemoteId, 2> remotes = {
        pair.import(shared_id), pair.import(pair.b.add(foreign.memory(Access::remote_all)))};
    std::array<PageOp, 2> ops = {PageOp{.bytes = kPage}, PageOp{.bytes = kPage}};
    ops[1].remote_region = 1;
    Batch batch{.ticket = Ticket{1}, .peer = pair.to_b};
    batch.ops = ops;
    batch.locals = {&local, 1};
    batch.remotes = remotes;
    ASSERT_TRUE(pair.a.link->post(batch).ok());
    ASSERT_EQ(await(Event::Kind::batch, pair.a).code, Code::ok);
    // Mapped by the importer only as long as the owner exports it.
    const std::size_t mapped = mappings();
    ASSERT_TRUE(pair.b.link->remove_memory(shared_id).ok());
    for (int i = 0; i < 64; ++i) pair.a.poll();
    EXPECT_EQ(mappings(), mapped - 1);
    if (round == 1) {
      pair.a.link->close_peer(pair.to_b);
      await(Event::Kind::peer_down, pair.a, pair.b);
      await(Event::Kind::peer_down, pair.b, pair.a);
    }
  }
  EXPECT_EQ(open_descriptors(), descriptors);
  EXPECT_EQ(mappings(), maps);
}

// What a peer costs that does nothing. Both sides are here, and each maps two outboxes.
TEST(ShmLink, IdlePeersAreCheap) {
  Host a, b;
  constexpr std::uint64_t kPeers = 200;
  // Of the control pages; the rest of a peer is below 2 KiB of heap and two sockets.
  const auto resident = [] {
    std::ifstream smaps("/proc/self/smaps");
    std::uint64_t kib = 0;
    bool outbox = false;
    for (std::string line; std::getline(smaps, line);) {
      const bool head = line[line.find(' ') - 1] != ':';
      if (head) outbox = line.find("kvlane-outbox") != line.npos;
      if (outbox && line.starts_with("Rss:")) kib += std::stoull(line.substr(4));
    }
    return kib * 1024;
  };
  Buffer buffer(true);
  const MemoryId memory = b.add(buffer.memory(Access::remote_all));
  const std::uint64_t before = resident();
  const std::size_t descriptors = open_descriptors();
  for (std::uint64_t i = 0; i < kPeers; ++i) {
    const PeerId to_b = *a.link->open_peer(PeerRole::active);
    const PeerId to_a = *b.link->open_peer(PeerRole::passive);
    ASSERT_TRUE(b.link->accept(to_a, *a.link->offer(to_b)).ok());
    ASSERT_TRUE(a.link->accept(to_b, *b.link->offer(to_a)).ok());
    await(Event::Kind::peer_up, a, b);
    await(Event::Kind::peer_up, b, a);
    ASSERT_TRUE(a.link->import_memory(to_b, *b.link->export_memory(memory, to_a)).ok());
  }
  EXPECT_LE((resident() - before) / kPeers, 2U * 60 * 1024);
  RecordProperty("bytes_per_pair", std::to_string((resident() - before) / kPeers));
  EXPECT_GT(resident(), before);
  static_assert(sizeof(shm::Peer) < 2048);
  EXPECT_EQ(open_descriptors() - descriptors,
            2 * kPeers);  // sockets; and a pidfd each between processes
}

}  // namespace
}  // namespace kvl::test
