// Memory within one process: ours and foreign, withdrawn, forged, sealed, and memory that only
// MemoryOps can touch.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <thread>

#include "tests/support/deferred_memory_ops.h"
#include "tests/support/log_guard.h"
#include "tests/transport/shm/pair.h"

namespace kvl::test {
namespace {

// Both kinds of memory must look the same from above.
class ShmMemory : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Kinds, ShmMemory, ::testing::Values(true, false),
                         [](const auto& kind) { return kind.param ? "shared" : "foreign"; });

TEST_P(ShmMemory, RandomRunsBothWays) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 engine(seed);
  const auto random = [&engine] { return static_cast<std::uint32_t>(engine()); };
  Pair pair;
  Buffer source(true), target(GetParam());
  const MemoryId local = pair.a.add(source.memory(Access::local));
  const MemoryId memory = pair.b.add(target.memory(Access::remote_all));
  const RemoteId remote = pair.import(memory);
  for (int round = 0; round < 40; ++round) {
    fill(source.data, kBytes, random());
    fill(target.data, kBytes, random());
    std::vector<std::byte> expected_source(source.data, source.data + kBytes);
    std::vector<std::byte> expected_target(target.data, target.data + kBytes);
    const bool write = (round & 1) == 0;
    // Runs in disjoint slabs of 16 KiB on either side, in random order.
    std::vector<std::uint32_t> slabs(kBytes >> 14);
    std::iota(slabs.begin(), slabs.end(), 0U);
    std::shuffle(slabs.begin(), slabs.end(), engine);
    std::vector<PageOp> ops;
    for (std::uint32_t i = 0; i < slabs.size(); ++i) {
      PageOp op;
      op.bytes = 1 + random() % 600;
      op.count = 1 + random() % 10;
      op.local_stride = op.bytes + random() % 3 * (random() % 500);
      op.remote_stride = op.bytes + random() % 3 * (random() % 500);
      op.local_offset = (std::uint64_t{i} << 14) + random() % 1000;
      op.remote_offset = (std::uint64_t{slabs[i]} << 14) + random() % 1000;
      ops.push_back(op);
    }
    Batch batch;
    batch.ticket = Ticket{static_cast<std::uint64_t>(round) + 1};
    batch.peer = pair.to_b;
    batch.direction = write ? Direction::write : Direction::read;
    batch.ops = ops;
    batch.begin = random() % ops.front().total_bytes();
    batch.end = 1 + random() % ops.back().total_bytes();
    batch.locals = {&local, 1};
    batch.remotes = {&remote, 1};
    std::uint64_t total = 0;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      const PageOp& op = ops[i];
      for (std::uint64_t at = i == 0 ? batch.begin : 0;
           at < (i + 1 == ops.size() ? batch.end : op.total_bytes()); ++at) {
        const std::uint64_t here =
            op.local_offset + at / op.bytes * op.local_stride + at % op.bytes;
        const std::uint64_t there =
            op.remote_offset + at / op.bytes * op.remote_stride + at % op.bytes;
        (write ? expected_target[there] : expected_source[here]) =
            write ? source.data[here] : target.data[there];
        ++total;
      }
    }
    ASSERT_TRUE(pair.a.link->post(batch).ok());
    const Event event = await(Event::Kind::batch, pair.a);
    EXPECT_EQ(event.code, Code::ok);
    EXPECT_EQ(event.ticket, batch.ticket);
    EXPECT_EQ(event.bytes_done, total);
    ASSERT_EQ(0, std::memcmp(source.data, expected_source.data(), kBytes));
    ASSERT_EQ(0, std::memcmp(target.data, expected_target.data(), kBytes));
  }
}

TEST_P(ShmMemory, RemovedMemoryIsNotReached) {
  Pair pair;
  Buffer source(true), target(GetParam());
  fill(source.data, kBytes, 1);
  const MemoryId local = pair.a.add(source.memory(Access::local));
  const MemoryId memory = pair.b.add(target.memory(Access::remote_all));
  const RemoteId remote = pair.import(memory);
  ASSERT_TRUE(pair.b.link->remove_memory(memory).ok());
  const PageOp op{.bytes = kPage};
  Batch batch{.ticket = Ticket{1}, .peer = pair.to_b};
  batch.ops = {&op, 1};
  batch.locals = {&local, 1};
  batch.remotes = {&remote, 1};
  // Refused although the initiator has not yet heard that it is gone.
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  EXPECT_EQ(await(Event::Kind::batch, pair.a).code, Code::permission);
  EXPECT_TRUE(
      std::all_of(target.data, target.data + kBytes, [](std::byte b) { return b == std::byte{}; }));
  // A new life of the slot is another memory.
  const MemoryId again = pair.b.add(target.memory(Access::remote_all));
  EXPECT_NE(again.value, memory.value);
  const RemoteId fresh = pair.import(again);
  batch.remotes = {&fresh, 1};
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  EXPECT_EQ(await(Event::Kind::batch, pair.a).code, Code::ok);
}

TEST_P(ShmMemory, AccessIsChecked) {
  Pair pair;
  Buffer source(true), target(GetParam());
  const MemoryId local = pair.a.add(source.memory(Access::local));
  const MemoryId memory = pair.b.add(target.memory(Access::remote_read));
  const RemoteId remote = pair.import(memory);
  const PageOp op{.bytes = kPage};
  Batch batch{.ticket = Ticket{1}, .peer = pair.to_b};
  batch.ops = {&op, 1};
  batch.locals = {&local, 1};
  batch.remotes = {&remote, 1};
  EXPECT_EQ(pair.a.link->post(batch).code(), Code::permission);
  batch.direction = Direction::read;
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  EXPECT_EQ(await(Event::Kind::batch, pair.a).code, Code::ok);
}

TEST(ShmLink, UnsealedMemfdIsTreatedAsForeign) {
  Pair pair;
  const UniqueFd fd(::memfd_create("unsealed", MFD_CLOEXEC));
  ASSERT_EQ(0, ::ftruncate(fd.get(), kBytes));
  auto* data = static_cast<std::byte*>(
      ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
  const Memory memory{data, kBytes, MemoryKind::host, 0, Access::remote_all, fd.get(), 0};
  Buffer source(true);
  fill(source.data, kBytes, 5);
  const MemoryId local = pair.a.add(source.memory(Access::local));
  const RemoteId remote = pair.import(pair.b.add(memory));
  const PageOp op{.bytes = kPage};
  Batch batch{.ticket = Ticket{1}, .peer = pair.to_b};
  batch.ops = {&op, 1};
  batch.locals = {&local, 1};
  batch.remotes = {&remote, 1};
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  EXPECT_EQ(await(Event::Kind::batch, pair.a).code, Code::ok);
  EXPECT_EQ(0, std::memcmp(source.data, data, kPage));
  ::munmap(data, kBytes);
}

TEST(ShmLink, ForeignMemoryThatIsNotMappedFailsItsBatchOnly) {
  Pair pair;
  Buffer source(true), target(false);
  const MemoryId local = pair.a.add(source.memory(Access::local));
  const RemoteId remote = pair.import(pair.b.add(target.memory(Access::remote_all)));
  ASSERT_EQ(0, ::mprotect(target.data + kBytes / 2, kBytes / 2, PROT_NONE));
  PageOp op{.bytes = kPage};
  op.remote_offset = kBytes / 2;
  Batch batch{.ticket = Ticket{1}, .peer = pair.to_b};
  batch.ops = {&op, 1};
  batch.locals = {&local, 1};
  batch.remotes = {&remote, 1};
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  EXPECT_EQ(await(Event::Kind::batch, pair.a).code, Code::permission);
  op.remote_offset = 0;
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  EXPECT_EQ(await(Event::Kind::batch, pair.a).code, Code::ok);
}

TEST(ShmLink, CrossMemorySwitchedOffIsLoudAndUnsupported) {
  Pair pair(Flags{{"shm.cross_memory", "off"}});
  Buffer target(false), shared(true);
  const Blob foreign =
      *pair.b.link->export_memory(pair.b.add(target.memory(Access::remote_all)), pair.to_a);
  {
    const ExpectLog expected("shm.cross_memory_denied");
    EXPECT_EQ(pair.a.link->import_memory(pair.to_b, foreign).code(), Code::unsupported);
  }
  // Said once; memory of ours still goes.
  EXPECT_EQ(pair.a.link->import_memory(pair.to_b, foreign).code(), Code::unsupported);
  pair.import(pair.b.add(shared.memory(Access::remote_all)));
}

TEST(ShmLink, ForgedBlobs) {
  Pair pair(Flags{{"shm.connect_timeout_ms", "50"}});
  Buffer source(true), target(true);
  const MemoryId local = pair.a.add(source.memory(Access::local));
  const MemoryId memory = pair.b.add(target.memory(Access::remote_read));
  const Blob blob = *pair.b.link->export_memory(memory, pair.to_a);
  for (std::size_t i = 0; i < blob.size(); ++i) {
    Blob forged = blob;
    forged[i] ^= std::byte{2};
    const Result<RemoteId> remote = pair.a.link->import_memory(pair.to_b, forged);
    if (!remote.ok()) continue;
    // Another memory of the same peer, which it never announced: refused when its time is over.
    const PageOp op{.bytes = 1};
    Batch batch{.ticket = Ticket{i + 1}, .peer = pair.to_b, .direction = Direction::read};
    batch.ops = {&op, 1};
    batch.locals = {&local, 1};
    batch.remotes = {&*remote, 1};
    ASSERT_TRUE(pair.a.link->post(batch).ok()) << "byte " << i;
    EXPECT_EQ(await(Event::Kind::batch, pair.a, pair.b).code, Code::permission) << "byte " << i;
    pair.a.link->drop_memory(*remote);
  }
  EXPECT_FALSE(pair.a.link->import_memory(pair.to_b, {}).ok());
  EXPECT_TRUE(pair.a.link->import_memory(pair.to_b, blob).ok());
}

// Device memory on our side, both kinds of host memory on the peer's.
TEST_P(ShmMemory, DeviceMemoryGoesThroughMemoryOps) {
  auto owned = std::make_unique<DeferredMemoryOps>();
  DeferredMemoryOps& ops = *owned;
  Pair pair(std::move(owned), make_host_memory_ops());
  constexpr std::uint64_t kBig = 8 << 20;
  DeviceMemory device(kBig);
  Buffer target(GetParam(), kBig);
  fill(device.shadow(), kBig, 11);
  const MemoryId local = pair.a.add(device.memory());
  const RemoteId remote = pair.import(pair.b.add(target.memory(Access::remote_all)));
  std::vector<PageOp> ops_list;
  for (std::uint32_t i = 0; i < kBig / kPage; ++i) {
    PageOp op{.bytes = kPage};
    op.local_offset = std::uint64_t{i} * kPage;
    op.remote_offset = std::uint64_t{i ^ 1U} * kPage;
    ops_list.push_back(op);
  }
  Batch batch{.ticket = Ticket{1}, .peer = pair.to_b};
  batch.ops = ops_list;
  batch.locals = {&local, 1};
  batch.remotes = {&remote, 1};
  batch.note = bytes_of("all");
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  await(Event::Kind::note, pair.b, pair.a);
  for (const PageOp& op : ops_list) {
    ASSERT_EQ(
        0, std::memcmp(target.data + op.remote_offset, device.shadow() + op.local_offset, kPage));
  }
  EXPECT_EQ(await(Event::Kind::batch, pair.a).bytes_done, kBig);
  std::memset(device.shadow(), 0, kBig);
  batch.direction = Direction::read;
  batch.note = {};
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  EXPECT_EQ(await(Event::Kind::batch, pair.a).code, Code::ok);
  for (const PageOp& op : ops_list) {
    ASSERT_EQ(
        0, std::memcmp(target.data + op.remote_offset, device.shadow() + op.local_offset, kPage));
  }
  EXPECT_EQ(ops.violations(), 0U);
  EXPECT_EQ(ops.bytes_copied(), 2 * kBig);
  // Ended early, by cancel, by close and by destruction: never while a copy is under way.
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  pair.a.poll();
  EXPECT_EQ(pair.a.link->remove_memory(local).code(), Code::exhausted);
  ASSERT_TRUE(pair.a.link->cancel(Ticket{1}).ok());
  EXPECT_EQ(await(Event::Kind::batch, pair.a).code, Code::aborted);
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  pair.a.poll();
  pair.a.link->close_peer(pair.to_b);
  EXPECT_EQ(await(Event::Kind::batch, pair.a, pair.b).code, Code::aborted);
  await(Event::Kind::peer_down, pair.a, pair.b);
  EXPECT_TRUE(pair.a.link->remove_memory(local).ok());
}

TEST(ShmLink, DeviceMemoryCannotBeExported) {
  Pair pair(std::make_unique<DeferredMemoryOps>(), std::make_unique<DeferredMemoryOps>());
  DeviceMemory device(kBytes);
  const MemoryId id = pair.b.add(device.memory(Access::remote_all));
  EXPECT_EQ(pair.b.link->export_memory(id, pair.to_a).code(), Code::unsupported);
}

TEST(ShmLink, DestroyedWithDeviceCopiesUnderWay) {
  Buffer target(true, 4 << 20);
  DeviceMemory device(4 << 20);
  Pair pair(std::make_unique<DeferredMemoryOps>(), make_host_memory_ops());
  const MemoryId local = pair.a.add(device.memory());
  const RemoteId remote = pair.import(pair.b.add(target.memory(Access::remote_all)));
  const PageOp op{.bytes = 4 << 20};
  Batch batch{.ticket = Ticket{1}, .peer = pair.to_b};
  batch.ops = {&op, 1};
  batch.locals = {&local, 1};
  batch.remotes = {&remote, 1};
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  pair.a.poll();
  pair.a.link.reset();  // the twin fails the test when a copy is left
  EXPECT_EQ(await(Event::Kind::peer_down, pair.b).code, Code::peer_lost);
}

TEST(ShmLink, MemoryIsAddedAndRemovedBesideTheOwner) {
  Pair pair;
  Buffer source(true), target(true);
  const MemoryId local = pair.a.add(source.memory(Access::local));
  const RemoteId remote = pair.import(pair.b.add(target.memory(Access::remote_all)));
  std::atomic<bool> stop{false};
  std::thread registrar([&] {
    while (!stop.load()) {
      const Result<MemoryId> id = pair.b.link->add_memory(target.memory(Access::remote_all));
      EXPECT_TRUE(id.ok() && pair.b.link->remove_memory(*id).ok());
    }
  });
  const PageOp op{.bytes = kPage};
  for (std::uint64_t i = 1; i <= 2000; ++i) {
    Batch batch{.ticket = Ticket{i}, .peer = pair.to_b};
    batch.ops = {&op, 1};
    batch.locals = {&local, 1};
    batch.remotes = {&remote, 1};
    batch.note = bytes_of("n");
    ASSERT_TRUE(pair.a.link->post(batch).ok());
    await(Event::Kind::note, pair.b, pair.a);
    await(Event::Kind::batch, pair.a);
  }
  stop = true;
  registrar.join();
}

}  // namespace
}  // namespace kvl::test
