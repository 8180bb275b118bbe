// Memory that no socket may touch, through the deferred-copy twin; and IPv6.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <random>

#include "tests/support/deferred_memory_ops.h"
#include "tests/transport/tcp/pair.h"

namespace kvl::test {
namespace {

void fill_shadow(const DeviceMemory& memory, std::uint64_t seed) {
  const auto bytes = random_bytes(memory.bytes(), seed);
  std::memcpy(memory.shadow(), bytes.data(), bytes.size());
}

struct StagedPair {
  explicit StagedPair(const DeferredMemoryOpsOptions& options = {}, const Flags& flags = {})
      : pair(flags, std::make_unique<DeferredMemoryOps>(options),
             std::make_unique<DeferredMemoryOps>(options)) {}
  Pair pair;
};

// Random runs between two device memories: only the bytes named change.
TEST(TcpStaging, DeviceMemoryOnBothSides) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const DeviceMemory here(8 << 20), there(8 << 20);
    fill_shadow(here, seed);
    fill_shadow(there, seed + 100);
    StagedPair staged({.polls_until_done = static_cast<std::uint32_t>(random() % 6),
                       .copies_max = static_cast<std::uint32_t>(random() % 3 + 1)});
    Pair& pair = staged.pair;
    pair.share(here.memory(), there.memory(Access::remote_all));
    const Direction direction = seed % 2 == 0 ? Direction::write : Direction::read;
    std::vector<std::byte> wanted_here(here.shadow(), here.shadow() + here.bytes());
    std::vector<std::byte> wanted_there(there.shadow(), there.shadow() + there.bytes());
    std::vector<PageOp> ops(random() % 3000 + 1);
    const std::uint64_t slot = (8 << 20) / ops.size();
    for (std::size_t i = 0; i < ops.size(); ++i) {
      PageOp& op = ops[i];
      op.count = static_cast<std::uint32_t>(random() % 4 + 1);
      op.bytes = static_cast<std::uint32_t>(random() % (slot / 8) + 1);
      op.local_stride = op.bytes + random() % (slot / 8);
      op.remote_stride = op.bytes + random() % (slot / 8);
      op.local_offset = i * slot;
      op.remote_offset = (ops.size() - 1 - i) * slot;
      for (std::uint64_t piece = 0; piece < op.count; ++piece) {
        std::byte* const l = wanted_here.data() + op.local_offset + piece * op.local_stride;
        std::byte* const r = wanted_there.data() + op.remote_offset + piece * op.remote_stride;
        direction == Direction::write ? std::memcpy(r, l, op.bytes) : std::memcpy(l, r, op.bytes);
      }
    }
    ASSERT_TRUE(pair.a.link->post(pair.batch(direction, ops, 1)).ok());
    EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::ok);
    EXPECT_EQ(std::memcmp(here.shadow(), wanted_here.data(), wanted_here.size()), 0);
    EXPECT_EQ(std::memcmp(there.shadow(), wanted_there.data(), wanted_there.size()), 0);
  }
}

TEST(TcpStaging, HostToDeviceWithANoteAfterTheBytes) {
  const DeviceMemory there(4 << 20);
  std::vector<std::byte> here = random_bytes(4 << 20, 3);
  StagedPair staged({.polls_until_done = 50});
  Pair& pair = staged.pair;
  pair.share(memory_of(here), there.memory(Access::remote_all));
  PageOp op;
  op.bytes = 4 << 20;
  Batch batch = pair.batch(Direction::write, std::span(&op, 1), 1);
  const std::byte note{9};
  batch.note = std::span(&note, 1);
  ASSERT_TRUE(pair.a.link->post(batch).ok());
  pair.await(pair.b, Event::Kind::note);
  EXPECT_EQ(std::memcmp(there.shadow(), here.data(), here.size()), 0);
  EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::ok);
}

// A lane that dies while copies are under way: the event waits for them, both sides stay sane.
TEST(TcpStaging, LaneDiesUnderACopy) {
  for (const Direction direction : {Direction::write, Direction::read}) {
    const DeviceMemory here(16 << 20), there(16 << 20);
    fill_shadow(here, 1);
    fill_shadow(there, 2);
    StagedPair staged({.polls_until_done = 20}, Flags{{"tcp.lanes", "1"}});
    Pair& pair = staged.pair;
    pair.share(here.memory(), there.memory(Access::remote_all));
    PageOp op;
    op.bytes = 16 << 20;
    ASSERT_TRUE(pair.a.link->post(pair.batch(direction, std::span(&op, 1), 1)).ok());
    for (int i = 0; i < 60; ++i) pair.step();
    ::shutdown(pair.a.tcp().lane_fd(pair.to_b, 0), SHUT_RDWR);
    EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::unavailable);
    ASSERT_TRUE(pair.until([&] { return pair.a.tcp().lane_fd(pair.to_b, 0) >= 0; }));
    ASSERT_TRUE(pair.a.link->post(pair.batch(direction, std::span(&op, 1), 2)).ok());
    EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::ok);
    EXPECT_EQ(std::memcmp(here.shadow(), there.shadow(), here.bytes()), 0);
  }
}

// Links are destroyed in the middle: the twin complains when a copy is left behind.
TEST(TcpStaging, DestructionIsQuiescent) {
  const DeviceMemory here(16 << 20), there(16 << 20);
  StagedPair staged({.polls_until_done = 20});
  Pair& pair = staged.pair;
  pair.share(here.memory(), there.memory(Access::remote_all));
  PageOp op;
  op.bytes = 16 << 20;
  ASSERT_TRUE(pair.a.link->post(pair.batch(Direction::write, std::span(&op, 1), 1)).ok());
  ASSERT_TRUE(pair.a.link->post(pair.batch(Direction::read, std::span(&op, 1), 2)).ok());
  for (int i = 0; i < 40; ++i) pair.step();
}

TEST(TcpAddresses, Ipv6) {
  const int probe = ::socket(AF_INET6, SOCK_STREAM, 0);
  sockaddr_in6 loopback{};
  loopback.sin6_family = AF_INET6;
  loopback.sin6_addr = in6addr_loopback;
  const bool usable = probe >= 0 && ::bind(probe, reinterpret_cast<const sockaddr*>(&loopback),
                                           sizeof(loopback)) == 0;
  if (probe >= 0) ::close(probe);
  if (!usable) GTEST_SKIP() << "this machine has no IPv6 loopback";
  Pair pair(Flags{{"tcp.bind", "::1"}});
  sockaddr_storage name{};
  socklen_t bytes = sizeof(name);
  ASSERT_EQ(
      ::getpeername(pair.a.tcp().lane_fd(pair.to_b, 0), reinterpret_cast<sockaddr*>(&name), &bytes),
      0);
  EXPECT_EQ(name.ss_family, AF_INET6);
  std::vector<std::byte> here = random_bytes(100'000, 1), there(100'000);
  pair.share(memory_of(here), memory_of(there, Access::remote_all));
  PageOp op;
  op.bytes = 100'000;
  ASSERT_TRUE(pair.a.link->post(pair.batch(Direction::write, std::span(&op, 1), 1)).ok());
  EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::ok);
  EXPECT_TRUE(here == there);
}

// MSG_ZEROCOPY is for other machines; the kernel copies on the way back to this one and says so,
// and the lane then stops asking.
TEST(TcpZeroCopy, NoticesAreTakenAndBytesAreRight) {
  const std::vector<SocketAddress> addresses = local_addresses();
  const auto outside = std::find_if(addresses.begin(), addresses.end(), [](const auto& address) {
    const std::string text = address.text();
    return text.rfind("127.", 0) != 0 && text.rfind("[::1]", 0) != 0;
  });
  if (outside == addresses.end()) GTEST_SKIP() << "only a loopback interface";
  Pair pair(Pair::Apart{}, Flags{{"tcp.zerocopy_min_bytes", "8192"}, {"tcp.lanes", "1"}});
  std::vector<std::byte> here = random_bytes(8 << 20, 1), there(8 << 20);
  pair.share(memory_of(here), memory_of(there, Access::remote_all));
  std::vector<PageOp> ops(256);
  for (std::size_t i = 0; i < ops.size(); ++i) {
    ops[i].local_offset = ops[i].remote_offset = i * 32768;
    ops[i].bytes = i % 3 == 0 ? 4096 : 32768;
  }
  for (std::uint64_t round = 0; round < 3; ++round) {
    ASSERT_TRUE(pair.a.link->post(pair.batch(Direction::write, ops, round)).ok());
    EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::ok);
  }
  for (const PageOp& op : ops) {
    EXPECT_EQ(std::memcmp(&here[op.local_offset], &there[op.remote_offset], op.bytes), 0);
  }
  EXPECT_TRUE(pair.until([&] { return metric(pair.a, "kvlane_tcp_zerocopy_notices_total") > 0; }));
  EXPECT_EQ(metric(pair.a, "kvlane_tcp_lost_lanes_total"), 0);
}

}  // namespace
}  // namespace kvl::test
