// The simulated network itself: determinism, faults, control connections. What a Link owes is in
// tests/transport/conformance.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "transport/sim/sim_control_net.h"
#include "transport/sim/sim_link.h"
#include "transport/sim/sim_transport.h"

namespace kvl::sim {
namespace {

class NoControl final : public ControlChannel {
 public:
  Status send(PeerId, std::span<const std::byte>) override { return {}; }
};

// Two nodes with a connected Link each, and a megabyte on both sides.
class TwoNodes {
 public:
  explicit TwoNodes(const SimOptions& options)
      : world(options), memory_ops(make_host_memory_ops()) {
    for (NodeId node = 0; node < 2; ++node) {
      SimTransport transport(world, node);
      sides[node].link =
          *transport.open(transport.devices().at(0), {control, *memory_ops, world.clock()});
      sides[node].bytes.assign(1 << 20, static_cast<std::byte>(node));
    }
    connect();
  }

  struct Side {
    std::unique_ptr<Link> link;
    std::vector<std::byte> bytes;
    PeerId peer;
    MemoryId memory;
    RemoteId remote;
    std::vector<Event> events;
  };

  void connect() {
    for (Side& side : sides) side.peer = *side.link->open_peer(PeerRole::active);
    for (int i = 0; i < 2; ++i) {
      ASSERT_TRUE(
          sides[i].link->accept(sides[i].peer, *sides[1 - i].link->offer(sides[1 - i].peer)).ok());
    }
    for (Side& side : sides) {
      side.memory = *side.link->add_memory(
          {side.bytes.data(), side.bytes.size(), MemoryKind::host, 0, Access::remote_all});
    }
    for (int i = 0; i < 2; ++i) {
      Side& other = sides[1 - i];
      sides[i].remote = *sides[i].link->import_memory(
          sides[i].peer, *other.link->export_memory(other.memory, other.peer));
    }
  }
  void poll() {
    for (Side& side : sides) {
      Event events[16];
      for (std::size_t n = side.link->poll(events); n > 0; n = side.link->poll(events)) {
        side.events.insert(side.events.end(), events, events + n);
      }
    }
  }
  // Until nothing happens any more, or for at most that long.
  void run(std::int64_t limit_ns = 10'000'000'000) {
    const std::int64_t end_ns = world.now_ns() + limit_ns;
    for (poll(); world.next_event_ns() <= end_ns; poll()) world.step();
    world.run_until(end_ns);
    poll();
  }
  Status write_all(std::uint64_t ticket) {
    Batch batch;
    batch.ticket = {ticket};
    batch.peer = sides[0].peer;
    batch.ops = ops;
    batch.locals = {&sides[0].memory, 1};
    batch.remotes = {&sides[0].remote, 1};
    batch.note = std::as_bytes(std::span("done", 4));
    return sides[0].link->post(batch);
  }
  const Event* find(int side, Event::Kind kind) {
    for (const Event& event : sides[side].events) {
      if (event.kind == kind) return &event;
    }
    return nullptr;
  }

  SimWorld world;
  NoControl control;
  std::unique_ptr<MemoryOps> memory_ops;
  std::vector<PageOp> ops{{0, 0, 0, 0, 4096, 256, 4096, 4096}};
  Side sides[2];
};

std::uint64_t digest_of(std::uint64_t seed) {
  SimOptions options;
  options.seed = seed;
  options.drop = 0.2;
  options.reorder = 0.3;
  TwoNodes nodes(options);
  EXPECT_TRUE(nodes.write_all(1).ok());
  nodes.run();
  EXPECT_EQ(nodes.sides[1].bytes, nodes.sides[0].bytes);
  return nodes.world.digest();
}

TEST(SimWorld, EqualSeedsGiveEqualRuns) {
  EXPECT_EQ(digest_of(7), digest_of(7));
  EXPECT_NE(digest_of(7), digest_of(8));
}

TEST(SimWorld, LossAndReorderDelayButDoNotLose) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) digest_of(seed);
}

TEST(SimWorld, PartitionBreaksConnection) {
  TwoNodes nodes({});
  nodes.world.partition_one_way(1, 0);  // bytes arrive, acknowledgements do not
  ASSERT_TRUE(nodes.write_all(1).ok());
  nodes.run();
  ASSERT_EQ(nodes.find(0, Event::Kind::peer_up), nullptr);
  const Event* const down = nodes.find(0, Event::Kind::peer_down);
  ASSERT_NE(down, nullptr);
}

TEST(SimWorld, PartitionMidTransfer) {
  TwoNodes nodes({});
  nodes.run(50'000);
  ASSERT_NE(nodes.find(0, Event::Kind::peer_up), nullptr);
  ASSERT_TRUE(nodes.write_all(1).ok());
  nodes.poll();
  nodes.world.partition(0, 1);
  nodes.run();
  const Event* const batch = nodes.find(0, Event::Kind::batch);
  ASSERT_NE(batch, nullptr);
  EXPECT_EQ(batch->code, Code::peer_lost);
  EXPECT_EQ(nodes.find(0, Event::Kind::peer_down)->code, Code::peer_lost);
  EXPECT_EQ(nodes.find(1, Event::Kind::note), nullptr);
}

TEST(SimWorld, ClogDelays) {
  TwoNodes nodes({});
  nodes.run(1'000'000);
  nodes.world.clog(0, 1, 50'000'000);
  const std::int64_t start_ns = nodes.world.now_ns();
  ASSERT_TRUE(nodes.write_all(1).ok());
  nodes.run(40'000'000);
  EXPECT_EQ(nodes.find(0, Event::Kind::batch), nullptr);
  nodes.run(20'000'000);
  ASSERT_NE(nodes.find(0, Event::Kind::batch), nullptr);
  EXPECT_EQ(nodes.find(0, Event::Kind::batch)->code, Code::ok);
  EXPECT_EQ(nodes.world.now_ns(), start_ns + 60'000'000);
}

TEST(SimWorld, DeviceDeathLosesPeersAtOnce) {
  TwoNodes nodes({});
  nodes.run(1'000'000);
  ASSERT_TRUE(nodes.write_all(1).ok());
  nodes.poll();
  nodes.world.kill_device(0, 0);
  nodes.poll();
  ASSERT_NE(nodes.find(0, Event::Kind::batch), nullptr);
  EXPECT_EQ(nodes.find(0, Event::Kind::batch)->code, Code::unavailable);
  EXPECT_EQ(nodes.find(0, Event::Kind::peer_down)->code, Code::unavailable);
  SimTransport transport(nodes.world, 0);
  EXPECT_TRUE(transport.devices().empty());
}

TEST(SimWorld, CrashedNodeIsDumbAndItsPeersNotice) {
  TwoNodes nodes({});
  nodes.run(1'000'000);
  ASSERT_TRUE(nodes.write_all(1).ok());
  nodes.poll();
  nodes.world.crash(1);
  nodes.run();
  EXPECT_EQ(nodes.find(0, Event::Kind::peer_down)->code, Code::peer_lost);
  EXPECT_EQ(nodes.find(1, Event::Kind::note), nullptr);
  nodes.sides[1].link.reset();
  nodes.world.restart(1);
  EXPECT_FALSE(SimTransport(nodes.world, 1).devices().empty());
}

TEST(SimWorld, TraceNamesEveryPacket) {
  SimOptions options;
  options.trace = true;
  TwoNodes nodes(options);
  nodes.run(1'000'000);
  ASSERT_FALSE(nodes.world.trace().empty());
  EXPECT_NE(nodes.world.trace().front().find("arrive"), std::string::npos);
}

class ControlNetTest : public testing::Test {
 protected:
  struct Log {
    std::vector<ControlEvent> events;
    std::size_t count(ControlEvent::Kind kind) const {
      std::size_t n = 0;
      for (const ControlEvent& event : events) n += event.kind == kind;
      return n;
    }
  };
  static SimOptions rough() {
    SimOptions options;
    options.drop = 0.2;
    options.reorder = 0.5;
    return options;
  }
  void run(std::int64_t ns = 5'000'000'000) {
    world_.advance(ns);
    a_.poll(log_a_.events);
    b_.poll(log_b_.events);
  }
  SimWorld world_{rough()};
  SimControlNet a_{world_, 0}, b_{world_, 1};
  Log log_a_, log_b_;
};

TEST_F(ControlNetTest, MessagesKeepTheirOrderAndPrecedeTheClose) {
  const ConnId conn = *a_.connect(b_.address());
  std::uint32_t next = 0;
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 10; ++i, ++next) {
      ASSERT_TRUE(a_.send(conn, std::as_bytes(std::span(&next, 1))).ok());
    }
    world_.advance(100'000);
  }
  a_.close(conn);
  EXPECT_EQ(a_.send(conn, {}).code(), Code::not_found);
  run();
  ASSERT_EQ(log_b_.events.size(), 202u);
  EXPECT_EQ(log_b_.events.front().kind, ControlEvent::Kind::accepted);
  EXPECT_EQ(log_b_.events.back().kind, ControlEvent::Kind::closed);
  for (std::uint32_t i = 0; i < next; ++i) {
    std::uint32_t value = 0;
    std::memcpy(&value, log_b_.events[i + 1].bytes.data(), sizeof(value));
    ASSERT_EQ(value, i);
  }
  EXPECT_EQ(log_a_.count(ControlEvent::Kind::closed), 0u);
}

TEST_F(ControlNetTest, RefusedAndMalformedAddresses) {
  EXPECT_EQ(a_.connect("127.0.0.1:1").code(), Code::invalid_argument);
  EXPECT_EQ(a_.connect("sim:1x").code(), Code::invalid_argument);
  ASSERT_TRUE(a_.connect("sim:9").ok());
  run();
  ASSERT_EQ(log_a_.events.size(), 1u);
  EXPECT_EQ(log_a_.events[0].kind, ControlEvent::Kind::closed);
}

TEST_F(ControlNetTest, CrashOfProcessClosesCrashOfMachineIsSilent) {
  for (const Crash kind : {Crash::process, Crash::machine}) {
    world_.options().drop = 0;
    const auto c = std::make_unique<SimControlNet>(world_, 2);
    log_a_.events.clear();
    const ConnId conn = *a_.connect(c->address());
    run(10'000'000);
    ASSERT_EQ(log_a_.count(ControlEvent::Kind::connected), 1u);
    world_.crash(2, kind);
    run();
    EXPECT_EQ(log_a_.count(ControlEvent::Kind::closed), kind == Crash::process ? 1u : 0u);
    if (kind == Crash::machine) {  // noticed by whoever says something
      ASSERT_TRUE(a_.send(conn, {}).ok());
      run();
      EXPECT_EQ(log_a_.count(ControlEvent::Kind::closed), 1u);
    }
    world_.restart(2);
  }
}

TEST_F(ControlNetTest, BoundedQueue) {
  const ConnId conn = *a_.connect(b_.address());
  const std::vector<std::byte> big(ControlNet::kMessageBytesMax);
  Status status;
  for (int i = 0; i < 10 && status.ok(); ++i) status = a_.send(conn, big);
  EXPECT_EQ(status.code(), Code::exhausted);
}

}  // namespace
}  // namespace kvl::sim
