// Lanes that die, peers that vanish, memory that is removed while bytes are on their way.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>

#include "tests/transport/tcp/fake_peer.h"

namespace kvl::test {
namespace {

constexpr std::size_t kHalf = 24 << 20;  // more than any socket buffers hold

struct TwoBatches {
  explicit TwoBatches(Direction direction)
      : pair(Flags{{"tcp.lanes", "2"}, {"tcp.reconnect_timeout_ms", "20000"}}),
        here(random_bytes(2 * kHalf, 1)),
        there(random_bytes(2 * kHalf, 2)) {
    pair.share(memory_of(here), memory_of(there, Access::remote_all));
    for (std::uint64_t i = 0; i < 2; ++i) {
      ops[i].local_offset = ops[i].remote_offset = i * kHalf;
      ops[i].bytes = kHalf;
      EXPECT_TRUE(pair.a.link->post(pair.batch(direction, std::span(&ops[i], 1), i)).ok());
    }
  }
  bool lanes_up() {
    return pair.a.tcp().lane_fd(pair.to_b, 0) >= 0 && pair.a.tcp().lane_fd(pair.to_b, 1) >= 0;
  }
  // Kills the first lane in the middle of its batch.
  void kill_lane() {
    EXPECT_TRUE(pair.until([&] { return lanes_up(); }));
    for (int i = 0; i < 3; ++i) pair.step();
    EXPECT_EQ(::shutdown(pair.a.tcp().lane_fd(pair.to_b, 0), SHUT_RDWR), 0);
  }
  void expect_whole() {
    PageOp all;
    all.bytes = 2 * kHalf;
    EXPECT_TRUE(pair.a.link->post(pair.batch(Direction::write, std::span(&all, 1), 9)).ok());
    EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::ok);
    EXPECT_TRUE(here == there);
  }

  Pair pair;
  std::vector<std::byte> here, there;
  PageOp ops[2];
};

TEST(TcpLoss, ADeadLaneCostsOnlyItsBatchAndComesBack) {
  for (const Direction direction : {Direction::write, Direction::read}) {
    TwoBatches test(direction);
    test.kill_lane();
    std::array<Code, 2> codes{};
    for (int i = 0; i < 2; ++i) {
      const Event event = test.pair.await(test.pair.a, Event::Kind::batch);
      codes.at(event.ticket.value) = event.code;
    }
    EXPECT_EQ(std::count(codes.begin(), codes.end(), Code::ok), 1);
    EXPECT_EQ(std::count(codes.begin(), codes.end(), Code::unavailable), 1);
    EXPECT_TRUE(test.pair.until([&] { return test.lanes_up(); })) << "not dialed again";
    EXPECT_EQ(metric(test.pair.a, "kvlane_tcp_lost_lanes_total"), 1);
    test.expect_whole();
  }
}

// A failed write is announced only when the other end has closed its socket.
TEST(TcpLoss, AFailedWriteWaitsForTheFence) {
  TwoBatches test(Direction::write);
  Pair& pair = test.pair;
  test.kill_lane();
  const SteadyClock clock;
  std::size_t ended = 0;
  while (ended < 1) {  // the batch on the other lane
    pair.a.poll();
    pair.b.poll();
    while (auto event = pair.a.take(Event::Kind::batch)) {
      EXPECT_EQ(event->code, Code::ok);
      ++ended;
    }
  }
  for (const std::int64_t end = clock.now_ns() + 50'000'000; clock.now_ns() < end;) {
    pair.a.poll();
    pair.b.poll();
    ASSERT_FALSE(pair.a.take(Event::Kind::batch).has_value()) << "announced without the fence";
  }
  EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::unavailable);
}

TEST(TcpLoss, WithoutAFenceThePeerIsGivenUp) {
  Pair pair(Flags{{"tcp.connect_timeout_ms", "300"}, {"tcp.lanes", "1"}});
  std::vector<std::byte> here(kHalf), there(kHalf);
  pair.share(memory_of(here), memory_of(there, Access::remote_all));
  PageOp op;
  op.bytes = kHalf;
  ASSERT_TRUE(pair.a.link->post(pair.batch(Direction::write, std::span(&op, 1), 1)).ok());
  for (int i = 0; i < 2; ++i) pair.a.poll();
  pair.a.control.broken = true;
  ::shutdown(pair.a.tcp().lane_fd(pair.to_b, 0), SHUT_RDWR);
  std::optional<Event> event;
  while (!(event = pair.a.take(Event::Kind::batch))) {
    pair.a.poll();
    pair.b.poll();
  }
  EXPECT_EQ(event->code, Code::peer_lost);
  EXPECT_EQ(pair.a.take(Event::Kind::peer_down)->code, Code::peer_lost);
}

TEST(TcpLoss, AVanishedPeerIsNoticedByBothRoles) {
  for (const bool dialer_dies : {false, true}) {
    Pair pair;
    Host& dead = dialer_dies ? pair.a : pair.b;
    Host& alive = dialer_dies ? pair.b : pair.a;
    const SteadyClock clock;
    dead.link.reset();
    dead.control.held.clear();  // kill -9 says no good-bye
    const std::int64_t start = clock.now_ns();
    std::optional<Event> event;
    while (!(event = alive.take(Event::Kind::peer_down))) alive.poll();
    EXPECT_EQ(event->code, Code::peer_lost);
    EXPECT_LT(clock.now_ns() - start, 2'000'000'000);
  }
}

TEST(TcpLoss, AClosedPeerTellsTheOther) {
  Pair pair;
  pair.a.link->close_peer(pair.to_b);
  EXPECT_EQ(pair.await(pair.a, Event::Kind::peer_down).code, Code::aborted);
  EXPECT_EQ(pair.await(pair.b, Event::Kind::peer_down).code, Code::peer_lost);
}

TEST(TcpLoss, CancelInTheMiddleEndsWhenNothingCanLand) {
  for (const Direction direction : {Direction::write, Direction::read}) {
    Pair pair(Flags{{"tcp.lanes", "1"}, {"tcp.frame_bytes", "1m"}});
    std::vector<std::byte> here = random_bytes(4 * kHalf, 1), there = random_bytes(4 * kHalf, 2);
    pair.share(memory_of(here), memory_of(there, Access::remote_all));
    std::vector<PageOp> ops(4 * kHalf >> 20);
    for (std::size_t i = 0; i < ops.size(); ++i) {
      ops[i].local_offset = ops[i].remote_offset = i << 20;
      ops[i].bytes = 1 << 20;
    }
    ASSERT_TRUE(pair.a.link->post(pair.batch(direction, ops, 1)).ok());
    ASSERT_TRUE(pair.a.link->post(pair.batch(direction, ops, 2)).ok());
    for (int i = 0; i < 2; ++i) pair.step();
    EXPECT_TRUE(pair.a.link->cancel(Ticket{1}).ok());
    EXPECT_TRUE(pair.a.link->cancel(Ticket{2}).ok());
    EXPECT_EQ(pair.a.link->cancel(Ticket{3}).code(), Code::not_found);
    for (int i = 0; i < 2; ++i) {
      const Event event = pair.await(pair.a, Event::Kind::batch);
      EXPECT_EQ(event.code, Code::aborted);
      EXPECT_LT(event.bytes_done, 4 * kHalf);
    }
    const std::vector<std::byte> quiet = direction == Direction::write ? there : here;
    for (int i = 0; i < 100; ++i) pair.step();
    EXPECT_TRUE((direction == Direction::write ? there : here) == quiet);
    ASSERT_TRUE(pair.a.link->post(pair.batch(direction, ops, 4)).ok());
    EXPECT_EQ(pair.await(pair.a, Event::Kind::batch).code, Code::ok);
    EXPECT_TRUE(here == there);
  }
}

// Memory that can be taken away: touching it afterwards is EFAULT or a crash.
struct Pages {
  explicit Pages(std::size_t size) : bytes(size) {
    data = static_cast<std::byte*>(
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  ~Pages() { ::munmap(data, bytes); }
  void take_away() const { ::mprotect(data, bytes, PROT_NONE); }
  Memory memory(Access access) const { return {data, bytes, MemoryKind::host, 0, access, -1, 0}; }
  std::size_t bytes;
  std::byte* data;
};

TEST(TcpLoss, MemoryRemovedUnderAnIncomingFrame) {
  Host host;
  const Pages pages(1 << 20);
  const MemoryId memory = host.add(pages.memory(Access::remote_all));
  FakePeer peer(host);
  const tcp::WireRun run{peer.name(memory), 0, 0, 1 << 20, 1};
  const auto frame = FakePeer::write_frame(3, std::span(&run, 1), random_bytes(1 << 20, 1));
  const auto all = std::span(frame);
  say(peer.lane, all.first(200'000));
  while (metric(host, "kvlane_tcp_received_bytes_total") < 200'000) host.poll();
  EXPECT_TRUE(host.link->remove_memory(memory).ok());
  pages.take_away();
  std::span<const std::byte> rest = all.subspan(200'000);
  while (!rest.empty()) {
    const std::size_t part = std::min<std::size_t>(rest.size(), 50'000);
    say(peer.lane, rest.first(part));
    rest = rest.subspan(part);
    host.poll();
  }
  EXPECT_EQ(peer.hear<tcp::FrameHeader>().type, tcp::FrameType::ack);
  EXPECT_EQ(tcp::code_from_wire(peer.hear<tcp::WireAck>().code), Code::permission);
}

TEST(TcpLoss, MemoryRemovedUnderAnAnswer) {
  Host host;
  const Pages pages(64 << 20);
  std::fill_n(pages.data, pages.bytes, std::byte{7});
  const MemoryId memory = host.add(pages.memory(Access::remote_read));
  FakePeer peer(host);
  tcp::FrameHeader request;
  request.type = tcp::FrameType::read_request;
  request.count = 1;
  request.batch = 5;
  request.data_bytes = pages.bytes;
  const tcp::WireRun run{peer.name(memory), 0, 0, 64 << 20, 1};
  say(peer.lane, raw_bytes(request));
  say(peer.lane, raw_bytes(run));
  while (metric(host, "kvlane_tcp_sent_bytes_total") < 100'000) host.poll();
  EXPECT_TRUE(host.link->remove_memory(memory).ok());
  pages.take_away();
  EXPECT_EQ(peer.hear<tcp::FrameHeader>().data_bytes, pages.bytes);
  const auto data = peer.hear_bytes(pages.bytes);
  ASSERT_EQ(data.size(), pages.bytes);
  const auto end =
      std::find_if(data.begin(), data.end(), [](std::byte b) { return b != std::byte{7}; });
  EXPECT_NE(end, data.end());
  EXPECT_TRUE(std::all_of(end, data.end(), [](std::byte b) { return b == std::byte{0}; }));
  const auto done = peer.hear<tcp::FrameHeader>();
  EXPECT_EQ(done.type, tcp::FrameType::read_done);
  EXPECT_EQ(tcp::code_from_wire(done.code), Code::permission);
}

}  // namespace
}  // namespace kvl::test
