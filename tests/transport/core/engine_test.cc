// The engine over every transport of the registry, with threads and driven by the caller.
#include "kvl/engine.h"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>

#include "kvl/log.h"
#include "kvl/metrics.h"
#include "tests/support/engine_pair.h"
#include "tests/support/log_guard.h"
#include "transport/base/address.h"
#include "transport/base/unique_fd.h"

namespace kvl {
namespace {

using Kind = EngineEvent::Kind;
using test::ExpectLog;
using test::TestEngine;

struct Mode {
  std::string transport, progress;
};

std::vector<Mode> modes() {
  std::vector<Mode> all;
  const Settings settings;
  for (const auto& transport : make_transports(settings)) {
    if (transport->devices().empty()) continue;
    for (const char* progress : {"thread", "caller"}) {
      all.push_back({std::string(transport->name()), progress});
    }
  }
  return all;
}

class EngineTest : public ::testing::TestWithParam<Mode> {
 protected:
  test::Flags flags(test::Flags more = {}) const {
    test::Flags all{{"require", GetParam().transport}, {"progress", GetParam().progress}};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

// Two engines, `a` has dialed `b`, both have a buffer of `bytes` registered for everything.
struct Couple {
  Couple(const test::Flags& flags, std::uint64_t bytes) : a(flags), b(flags) {
    here = SharedBuffer::open(bytes).value();
    there = SharedBuffer::open(bytes).value();
    local = a->register_memory(here->memory(Access::remote_all)).value();
    remote = b->register_memory(there->memory(Access::remote_all)).value();
    peer = a->connect(b->address()).value();
    EXPECT_EQ(a.wait(Kind::peer_up, {&b}).peer, peer);
    back = b.wait(Kind::peer_up, {&a}).peer;
  }
  Transfer transfer(std::span<const PageOp> ops, Direction direction = Direction::write) {
    Transfer t;
    t.peer = peer;
    t.direction = direction;
    t.ops = ops;
    t.locals = {&local, 1};
    t.remotes = {&remote, 1};
    return t;
  }
  TestEngine a, b;
  std::unique_ptr<SharedBuffer> here, there;
  MemoryHandle local, remote;
  PeerHandle peer, back;
};

std::vector<PageOp> shuffled_pages(std::size_t pages, std::uint32_t bytes, std::uint64_t seed) {
  std::vector<std::uint64_t> to(pages);
  std::iota(to.begin(), to.end(), 0);
  std::mt19937_64 random(seed);
  std::shuffle(to.begin(), to.end(), random);
  std::vector<PageOp> ops(pages);
  for (std::size_t i = 0; i < pages; ++i) {
    ops[i].local_offset = i * bytes;
    ops[i].remote_offset = to[i] * bytes;
    ops[i].bytes = bytes;
  }
  return ops;
}

void fill(SharedBuffer& buffer, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto* const words = reinterpret_cast<std::uint64_t*>(buffer.data());
  for (std::uint64_t i = 0; i < buffer.bytes() / 8; ++i) words[i] = random();
}

std::size_t wrong(const std::vector<PageOp>& ops, const std::byte* local, const std::byte* remote) {
  std::size_t count = 0;
  for (const PageOp& op : ops) {
    count += !std::equal(local + op.local_offset, local + op.local_offset + op.bytes,
                         remote + op.remote_offset);
  }
  return count;
}

TEST_P(EngineTest, WritesPagesThenShowsTheNote) {
  Couple c(flags(), 8 << 20);
  fill(*c.here, 1);
  const auto ops = shuffled_pages(1024, 8192, 2);
  const std::byte note[3] = {std::byte{1}, std::byte{2}, std::byte{3}};
  Transfer t = c.transfer(ops);
  t.note = note;
  t.user = 77;
  ASSERT_TRUE(c.a->submit(t).ok());
  const EngineEvent shown = c.b.wait(Kind::note, {&c.a});
  EXPECT_EQ(shown.peer, c.back);
  ASSERT_EQ(shown.data.size(), 3U);
  EXPECT_EQ(shown.data[2], note[2]);
  EXPECT_EQ(wrong(ops, c.here->data(), c.there->data()), 0U);
  const EngineEvent done = c.a.wait(Kind::transfer, {&c.b});
  EXPECT_EQ(done.code, Code::ok);
  EXPECT_EQ(done.user, 77U);
  EXPECT_EQ(done.bytes, 8U << 20);
  EXPECT_EQ(done.physical, Physical::quiescent);
}

// An outer loop that looks at event_fd() only: every arrival wakes it, and it does not spin.
TEST_P(EngineTest, AnOuterLoopSleepsOnTheEventDescriptor) {
  // Without timers: whoever is not woken by an arrival sleeps until the deadlines below.
  Couple c(flags({{"heartbeat_ms", "60000"}, {"peer_timeout_ms", "600000"}}), 1 << 20);
  fill(*c.here, 1);
  const auto ops = shuffled_pages(16, 65536, 2);
  constexpr int kRounds = 50;
  const int outer = ::epoll_create1(EPOLL_CLOEXEC);
  epoll_event watched{EPOLLIN, {}};
  ASSERT_EQ(::epoll_ctl(outer, EPOLL_CTL_ADD, c.b->event_fd(), &watched), 0);
  std::atomic<int> notes{0};
  std::atomic<std::uint64_t> sleeps{0};
  std::thread target([&] {
    const SteadyClock clock;
    const std::int64_t end_ns = clock.now_ns() + 20'000'000'000;
    while (notes < kRounds && clock.now_ns() < end_ns) {
      EngineEvent events[8];
      while (const std::size_t count = c.b->poll(events)) {
        for (std::size_t i = 0; i < count; ++i) notes += events[i].kind == Kind::note ? 1 : 0;
      }
      if (notes >= kRounds || c.b->arm(30'000) <= 0) continue;
      ++sleeps;
      epoll_event ready{};
      ::epoll_wait(outer, &ready, 1, 30'000);
    }
  });
  std::uint64_t slept = 0;
  for (int round = 0; round < kRounds && !HasFailure(); ++round) {
    // Only once the target has gone to sleep again.
    const SteadyClock clock;
    const std::int64_t end_ns = clock.now_ns() + 20'000'000'000;
    const std::uint64_t before = slept;
    while (sleeps == before && clock.now_ns() < end_ns) std::this_thread::yield();
    slept = sleeps;
    const std::byte note[1] = {static_cast<std::byte>(round)};
    Transfer t = c.transfer(ops);
    t.note = note;
    if (!c.a->submit(t).ok()) break;
    EXPECT_EQ(c.a.wait(Kind::transfer).code, Code::ok) << "the target slept through an arrival";
  }
  target.join();
  ::close(outer);
  EXPECT_EQ(notes, kRounds);
  EXPECT_GT(sleeps, 0U) << "it never slept";
}

// Rails that are to be avoided carry a transfer only where no other one can.
TEST(EnginePaths, AvoidedRailsAreTheLastChoice) {
  Couple c({}, 1 << 20);
  fill(*c.here, 1);
  const auto ops = shuffled_pages(16, 65536, 2);
  RailSet tcp = 0, shm = 0;
  const std::vector<RailInfo> rails = c.a->rails();
  for (std::size_t i = 0; i < rails.size(); ++i) {
    if (rails[i].transport == "tcp") tcp |= RailSet{1} << i;
    if (rails[i].transport == "shm") shm |= RailSet{1} << i;
  }
  ASSERT_NE(tcp, 0U);
  ASSERT_NE(shm, 0U);
  // Both ways must be up before there is a choice.
  const SteadyClock clock;
  const std::int64_t end_ns = clock.now_ns() + 10'000'000'000;
  const auto rails_of = [&](RailSet avoid) {
    Transfer t = c.transfer(ops);
    t.avoid = avoid;
    EXPECT_TRUE(c.a->submit(t).ok());
    const EngineEvent done = c.a.wait(Kind::transfer, {&c.b});
    EXPECT_EQ(done.code, Code::ok);
    return done.rails;
  };
  while (rails_of(0) != shm || (rails_of(shm) & tcp) == 0) ASSERT_LT(clock.now_ns(), end_ns);
  EXPECT_EQ(rails_of(shm) & shm, 0U);
  EXPECT_EQ(rails_of(shm | tcp), shm) << "nothing is left to choose from";
  EXPECT_EQ(wrong(ops, c.here->data(), c.there->data()), 0U);
}

TEST_P(EngineTest, ReadsPages) {
  Couple c(flags(), 8 << 20);
  fill(*c.there, 1);
  const auto ops = shuffled_pages(100, 65536, 2);
  ASSERT_TRUE(c.a->submit(c.transfer(ops, Direction::read)).ok());
  EXPECT_EQ(c.a.wait(Kind::transfer, {&c.b}).code, Code::ok);
  EXPECT_EQ(wrong(ops, c.here->data(), c.there->data()), 0U);
}

TEST_P(EngineTest, TakesAHundredThousandRunsInOneSubmit) {
  Couple c(flags(), 16 << 20);
  fill(*c.here, 3);
  const auto ops = shuffled_pages(100'000, 128, 4);
  ASSERT_TRUE(c.a->submit(c.transfer(ops)).ok());
  EXPECT_EQ(c.a.wait(Kind::transfer, {&c.b}).code, Code::ok);
  EXPECT_EQ(wrong(ops, c.here->data(), c.there->data()), 0U);
}

TEST_P(EngineTest, ManyTransfersEndOnceEach) {
  Couple c(flags(), 4 << 20);
  fill(*c.here, 5);
  std::vector<std::vector<PageOp>> lists;
  for (std::uint64_t i = 0; i < 64; ++i) {
    PageOp op;
    op.local_offset = op.remote_offset = i * 65536;
    op.bytes = 65536;
    lists.push_back({op});
  }
  for (std::uint64_t i = 0; i < lists.size(); ++i) {
    Transfer t = c.transfer(lists[i]);
    t.user = i;
    ASSERT_TRUE(c.a->submit(t).ok());
  }
  std::vector<int> ended(lists.size());
  for (std::size_t i = 0; i < lists.size(); ++i) {
    const EngineEvent done = c.a.wait(Kind::transfer, {&c.b});
    EXPECT_EQ(done.code, Code::ok);
    ++ended[done.user];
  }
  EXPECT_TRUE(std::all_of(ended.begin(), ended.end(), [](int n) { return n == 1; }));
  EXPECT_TRUE(std::equal(c.here->data(), c.here->data() + (4 << 20), c.there->data()));
}

TEST_P(EngineTest, WrongRequestsAreRefusedAndHarmNothing) {
  const test::ExpectLog log("tcp.run_refused");
  Couple c(flags(), 1 << 20);
  PageOp op;
  op.bytes = 4096;
  const auto refused = [&](const PageOp& bad) { return c.a->submit(c.transfer({&bad, 1})).code(); };
  PageOp bad = op;
  bad.bytes = 0;
  EXPECT_EQ(refused(bad), Code::invalid_argument);
  bad = op;
  bad.remote_region = 1;
  EXPECT_EQ(refused(bad), Code::invalid_argument);
  Transfer t = c.transfer({&op, 1});
  const MemoryHandle stranger{0x700000001};
  t.remotes = {&stranger, 1};
  EXPECT_EQ(c.a->submit(t).code(), Code::not_found);
  t = c.transfer({&op, 1});
  t.locals = {&stranger, 1};
  EXPECT_EQ(c.a->submit(t).code(), Code::invalid_argument);
  t = c.transfer({&op, 1});
  t.peer = {0x900000001};
  EXPECT_EQ(c.a->submit(t).code(), Code::not_found);

  // Out of the remote bounds: accepted here, refused where the memory is.
  bad = op;
  bad.remote_offset = 1 << 20;
  const auto late = c.a->submit(c.transfer({&bad, 1}));
  if (late.ok()) {
    const Code code = c.a.wait(Kind::transfer, {&c.b}).code;
    EXPECT_TRUE(code == Code::invalid_argument || code == Code::permission) << to_string(code);
  }
  ASSERT_TRUE(c.a->submit(c.transfer({&op, 1})).ok());
  EXPECT_EQ(c.a.wait(Kind::transfer, {&c.b}).code, Code::ok);
}

TEST_P(EngineTest, DeregisteredMemoryIsOutOfReach) {
  const test::ExpectLog log("tcp.run_refused");
  Couple c(flags(), 1 << 20);
  PageOp op;
  op.bytes = 4096;
  ASSERT_TRUE(c.b->deregister_memory(c.remote).ok());
  EXPECT_EQ(c.b->deregister_memory(c.remote).code(), Code::invalid_argument);
  std::fill_n(c.here->data(), 4096, std::byte{1});
  const auto id = c.a->submit(c.transfer({&op, 1}));
  if (id.ok()) {
    EXPECT_NE(c.a.wait(Kind::transfer, {&c.b}).code, Code::ok);
  }
  EXPECT_EQ(c.there->data()[0], std::byte{0});
}

TEST_P(EngineTest, MessagesArriveInOrder) {
  Couple c(flags(), 4096);
  for (unsigned i = 0; i < 200; ++i) {
    const std::vector<std::byte> message(i * 37, static_cast<std::byte>(i));
    ASSERT_TRUE(c.a->send(c.peer, message).ok());
  }
  for (unsigned i = 0; i < 200; ++i) {
    const EngineEvent event = c.b.wait(Kind::message, {&c.a});
    ASSERT_EQ(event.data.size(), i * 37);
    if (i > 0) {
      EXPECT_EQ(event.data[0], static_cast<std::byte>(i));
    }
  }
}

TEST_P(EngineTest, WaitsForReadyThenMoves) {
  Couple c(flags(), 4096);
  std::atomic<std::uint32_t> flag{0};
  PageOp op;
  op.bytes = 4096;
  fill(*c.here, 9);
  Transfer t = c.transfer({&op, 1});
  t.after = {&flag, 2};
  ASSERT_TRUE(c.a->submit(t).ok());
  flag = 1;
  for (int i = 0; i < 20; ++i) {
    c.a.pump();
    c.b.pump();
    c.a->wait(1);
  }
  EXPECT_FALSE(c.a.has(Kind::transfer));
  EXPECT_EQ(c.there->data()[0], std::byte{0});
  flag = 2;
  EXPECT_EQ(c.a.wait(Kind::transfer, {&c.b}).code, Code::ok);
}

TEST_P(EngineTest, CancelAnswersQuiescent) {
  Couple c(flags(), 4096);
  std::atomic<std::uint32_t> never{0};
  PageOp op;
  op.bytes = 4096;
  Transfer t = c.transfer({&op, 1});
  t.after = {&never, 1};
  const TransferId id = c.a->submit(t).value();
  ASSERT_TRUE(c.a->cancel(id, 5000).ok());
  const EngineEvent done = c.a.wait(Kind::transfer, {&c.b});
  EXPECT_EQ(done.code, Code::aborted);
  EXPECT_EQ(done.physical, Physical::quiescent);
  EXPECT_EQ(c.a->cancel(id, 0).code(), Code::not_found);
}

TEST_P(EngineTest, DeadlineEndsATransferThatCannotMove) {
  Couple c(flags(), 4096);
  std::atomic<std::uint32_t> never{0};
  PageOp op;
  op.bytes = 4096;
  Transfer t = c.transfer({&op, 1});
  t.after = {&never, 1};
  t.timeout_ms = 50;
  ASSERT_TRUE(c.a->submit(t).ok());
  EXPECT_EQ(c.a.wait(Kind::transfer, {&c.b}).code, Code::timed_out);
}

TEST_P(EngineTest, PeerThatLeavesIsNoticedAndARestartReconnects) {
  Couple c(flags({{"reconnect_ms", "10"}}), 1 << 20);
  const std::string address = c.b->address();
  const std::uint64_t epoch = c.b->epoch();
  c.b.close();
  const EngineEvent down = c.a.wait(Kind::peer_down);
  EXPECT_EQ(down.code, Code::peer_lost);
  EXPECT_EQ(down.epoch, epoch);
  c.b = TestEngine(flags({{"listen", address}}));
  const EngineEvent up = c.a.wait(Kind::peer_up, {&c.b});
  EXPECT_EQ(up.peer, c.peer);
  EXPECT_GT(up.epoch, epoch);
  c.remote = c.b->register_memory(c.there->memory(Access::remote_all)).value();
  fill(*c.here, 4);
  const auto ops = shuffled_pages(16, 4096, 2);
  // The announcement of the new handle travels behind the registration.
  auto id = c.a->submit(c.transfer(ops));
  while (id.code() == Code::not_found) {
    c.a.pump();
    c.b.pump();
    c.a->wait(1);
    id = c.a->submit(c.transfer(ops));
  }
  EXPECT_EQ(c.a.wait(Kind::transfer, {&c.b}).code, Code::ok);
  EXPECT_EQ(wrong(ops, c.here->data(), c.there->data()), 0U);
}

std::string shown(TestEngine& engine) {
  PrometheusText text;
  engine->visit_metrics(text);
  return text.text();
}

// What is logged while it lives, of every level.
struct Lines {
  Lines() {
    set_log_levels("info");
    set_log_sink([this](LogLevel level, std::string_view line) {
      const std::lock_guard lock(mutex);
      all += (level < LogLevel::warning ? "info " : "warning ") + std::string(line) + "\n";
    });
  }
  ~Lines() {
    set_log_levels("warning");
    test::install_log_guard();
  }
  bool have(std::string_view part) {
    const std::lock_guard lock(mutex);
    return all.find(part) != std::string::npos;
  }
  std::mutex mutex;
  std::string all;
};

TEST_P(EngineTest, AGoodbyeIsNoLoss) {
  Lines lines;
  Couple c(flags(), 4096);
  c.b.close();
  ASSERT_EQ(c.a.wait(Kind::peer_down).code, Code::peer_lost);
  EXPECT_TRUE(lines.have("info peer.left ")) << lines.all;
  EXPECT_FALSE(lines.have("warning ")) << lines.all;
  const std::string metrics = shown(c.a);
  EXPECT_NE(metrics.find("kvlane_peers_left_total 1\n"), std::string::npos) << metrics;
  EXPECT_EQ(metrics.find("kvlane_peers_lost_total{"), std::string::npos) << metrics;
}

TEST_P(EngineTest, ALossIsAWarningAndCountedByPeerAndCause) {
  if (GetParam().progress != "caller") GTEST_SKIP() << "a peer with threads is never silent";
  Lines lines;
  Couple c(flags({{"peer_timeout_ms", "2000"}}), 4096);
  ASSERT_EQ(c.a.wait(Kind::peer_down).code, Code::peer_lost);  // nobody drives b
  EXPECT_TRUE(lines.have("warning peer.down ")) << lines.all;
  EXPECT_TRUE(lines.have(" code=peer_lost why=\"no heartbeat\" hint=")) << lines.all;
  const std::string metrics = shown(c.a);
  EXPECT_NE(metrics.find("kvlane_peers_lost_total{cause=\"peer_lost\",peer=\"" + c.b->address() +
                         "\"} 1\n"),
            std::string::npos)
      << metrics;
}

TEST_P(EngineTest, LeavingPeerEndsTransfersTyped) {
  Couple c(flags(), 4096);
  std::atomic<std::uint32_t> never{0};
  PageOp op;
  op.bytes = 4096;
  Transfer t = c.transfer({&op, 1});
  t.after = {&never, 1};
  ASSERT_TRUE(c.a->submit(t).ok());
  c.b.close();
  EXPECT_EQ(c.a.wait(Kind::transfer).code, Code::peer_lost);
  EXPECT_EQ(c.a->send(c.peer, {}).code(), Code::peer_lost);
}

TEST_P(EngineTest, DisconnectEndsTransfersAsAborted) {
  // A lane that is just dialing comes too late: its session is over.
  const ExpectLog late("tcp.greeting_refused");
  Couple c(flags(), 4096);
  std::atomic<std::uint32_t> never{0};
  PageOp op;
  op.bytes = 4096;
  Transfer t = c.transfer({&op, 1});
  t.after = {&never, 1};
  ASSERT_TRUE(c.a->submit(t).ok());
  ASSERT_TRUE(c.a->disconnect(c.peer).ok());
  EXPECT_EQ(c.a.wait(Kind::transfer, {&c.b}).code, Code::aborted);
  EXPECT_EQ(c.b.wait(Kind::peer_down, {&c.a}).peer, c.back);
  EXPECT_EQ(c.a->submit(c.transfer({&op, 1})).code(), Code::not_found);
}

TEST_P(EngineTest, UnreachableAddressIsSaidInTime) {
  TestEngine a(flags({{"connect_timeout_ms", "100"}}));
  std::string gone;
  {
    TestEngine b(flags());
    gone = b->address();
  }
  const PeerHandle peer = a->connect(gone).value();
  const EngineEvent down = a.wait(Kind::peer_down);
  EXPECT_EQ(down.peer, peer);
  EXPECT_EQ(down.code, Code::unavailable);
  EXPECT_EQ(a->connect("nowhere").code(), Code::invalid_argument);
}

TEST_P(EngineTest, GarbageOnTheControlPortIsRefusedAndCounted) {
  const ExpectLog log("control.refused");
  Couple c(flags(), 4096);
  const SocketAddress address = parse_address(c.b->address()).value();
  const UniqueFd raw(::socket(address.family(), SOCK_STREAM, 0));
  ASSERT_EQ(::connect(raw.get(), address.raw(), address.bytes), 0);
  const char garbage[] = "\x05\0\0\0GET / HTTP/1.1\r\n\r\n";
  ASSERT_GT(::send(raw.get(), garbage, sizeof(garbage), MSG_NOSIGNAL), 0);
  const auto refused = [&] {
    PrometheusText text;
    c.b->visit_metrics(text);
    return text.text().find("kvlane_control_refused_total{cause=\"out_of_place\"} 1") !=
           std::string::npos;
  };
  for (int i = 0; i < 10000 && !refused(); ++i) {
    c.a.pump();
    c.b.pump();
    c.b->wait(1);
  }
  EXPECT_TRUE(refused());
  EXPECT_FALSE(c.a.has(Kind::peer_down));
}

TEST_P(EngineTest, SeveralRailsShareOneTransfer) {
  Couple c(flags({{"rails_per_device", "3"}}), 32 << 20);
  fill(*c.here, 1);
  const auto ops = shuffled_pages(512, 65536, 2);
  ASSERT_TRUE(c.a->submit(c.transfer(ops)).ok());
  EXPECT_EQ(c.a.wait(Kind::transfer, {&c.b}).code, Code::ok);
  EXPECT_EQ(wrong(ops, c.here->data(), c.there->data()), 0U);
}

INSTANTIATE_TEST_SUITE_P(All, EngineTest, ::testing::ValuesIn(modes()), [](const auto& mode) {
  return mode.param.transport + "_" + mode.param.progress;
});

TEST(EngineOpen, ContradictionsAndMissingTransportsAreSaid) {
  std::string error;
  EXPECT_EQ(
      Engine::open(test::engine_test_settings({{"force_tcp", "1"}, {"require", "shm"}}), &error)
          .code(),
      Code::invalid_argument);
  EXPECT_NE(error.find("force_tcp"), std::string::npos);
  EXPECT_EQ(Engine::open(test::engine_test_settings({{"require", "efa"}}), &error).code(),
            Code::unavailable);
  EXPECT_NE(error.find("efa"), std::string::npos);
  EXPECT_EQ(Engine::open(test::engine_test_settings({{"progress", "magic"}}), &error).code(),
            Code::invalid_argument);
  TestEngine a;
  EXPECT_EQ(Engine::open(test::engine_test_settings({{"listen", a->address()}}), &error).code(),
            Code::unavailable);
  EXPECT_NE(error.find(a->address()), std::string::npos);
}

}  // namespace
}  // namespace kvl
