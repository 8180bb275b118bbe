// What arrives on the data port and on lanes is hostile: it is refused, counted, and harms nobody.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "tests/support/log_guard.h"
#include "tests/transport/tcp/fake_peer.h"

namespace kvl::test {
namespace {

using tcp::FrameHeader;
using tcp::FrameType;
using tcp::Greeting;
using tcp::WireAck;
using tcp::WireRun;

std::uint16_t port_of(Host& host) {
  const PeerId peer = *host.link->open_peer(PeerRole::passive);
  const auto offer = tcp::decode_offer(*host.link->offer(peer));
  return offer->addresses.front().port();
}

// Polls until the connection has been closed by the host.
::testing::AssertionResult refused(Host& host, const UniqueFd& fd) {
  const SteadyClock clock;
  const std::int64_t deadline = clock.now_ns() + kPatienceNs;
  while (clock.now_ns() < deadline) {
    host.poll();
    char one = 0;
    const ssize_t n = ::recv(fd.get(), &one, 1, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN)) return ::testing::AssertionSuccess();
    if (n > 0) return ::testing::AssertionFailure() << "was answered";
  }
  return ::testing::AssertionFailure() << "was kept";
}

TEST(TcpHostile, GarbageOnTheDataPortIsRefused) {
  const test::ExpectLog log("tcp.greeting_refused");
  Host host;
  const std::uint16_t port = port_of(host);
  const UniqueFd fd = dial_port(port);
  const std::vector<std::byte> garbage = random_bytes(4096, 5);
  say(fd, garbage);
  EXPECT_TRUE(refused(host, fd));
  EXPECT_EQ(metric(host, "kvlane_tcp_refused_greetings_total"), 1);
}

TEST(TcpHostile, WrongTokenVersionOrKindIsRefused) {
  const test::ExpectLog log("tcp.greeting_refused");
  Host host;
  const PeerId peer = *host.link->open_peer(PeerRole::passive);
  const auto offer = *tcp::decode_offer(*host.link->offer(peer));
  Greeting good;
  good.token = offer.token;
  good.lanes = 1;
  good.incarnation = 1;
  good.batches_inflight_max = 1;
  const auto with = [&](auto change) {
    Greeting bad = good;
    change(bad);
    const UniqueFd fd = dial_port(offer.addresses.front().port());
    say(fd, raw_bytes(bad));
    EXPECT_TRUE(refused(host, fd));
  };
  with([](Greeting& g) { g.token[7] ^= std::byte{1}; });
  with([](Greeting& g) { ++g.version; });
  with([](Greeting& g) { g.kind = tcp::GreetingKind::welcome; });
  with([](Greeting& g) { g.lane = 1000; });
  with([](Greeting& g) { g.batches_inflight_max = 0; });
  EXPECT_EQ(metric(host, "kvlane_tcp_refused_greetings_total"), 5);
}

TEST(TcpHostile, SilentConnectionsEndAtTheDeadline) {
  Host host(Flags{{"tcp.connect_timeout_ms", "50"}});
  const UniqueFd fd = dial_port(port_of(host));
  EXPECT_TRUE(refused(host, fd));
}

TEST(TcpHostile, OffersAndNamesAreChecked) {
  Host host;
  const PeerId peer = *host.link->open_peer(PeerRole::active);
  const Blob offer = *host.link->offer(peer);
  std::mt19937_64 random(11);
  for (std::size_t bytes = 0; bytes < offer.size(); ++bytes) {
    const auto status = host.link->accept(peer, std::span(offer).first(bytes));
    EXPECT_EQ(status.code(), Code::invalid_argument) << bytes;
    EXPECT_EQ(host.link->import_memory(peer, std::span(offer).first(bytes)).code(),
              Code::invalid_argument);
  }
  Blob longer = offer;
  longer.push_back(std::byte{0});
  EXPECT_EQ(host.link->accept(peer, longer).code(), Code::invalid_argument);
  host.link->on_control(peer, offer);
  host.link->on_control(PeerId{12345}, offer);
}

struct Target {
  Target() : bytes(random_bytes(1 << 20, 1)), secret(random_bytes(4096, 2)), peer(host) {
    before = bytes;
    memory = peer.name(host.add(memory_of(bytes, Access::remote_all)));
    read_only = peer.name(host.add(memory_of(secret, Access::remote_read)));
  }
  Host host;
  std::vector<std::byte> bytes, secret, before;
  FakePeer peer;
  std::uint64_t memory = 0, read_only = 0;  // as the peer names them
};

TEST(TcpHostile, BadRunsAreRefusedAndTheRestLands) {
  const test::ExpectLog log("tcp.");
  Target target;
  const std::vector<std::byte> data = random_bytes(300, 3);
  const std::vector<std::byte> secret_before = target.secret;
  const std::uint64_t good = target.memory;
  const auto code_of = [&](const WireRun& bad) {
    const WireRun runs[] = {{good, 0, 0, 100, 1}, bad, {good, 200, 0, 100, 1}};
    say(target.peer.lane, FakePeer::write_frame(9, runs, data));
    const auto header = target.peer.hear<FrameHeader>();
    EXPECT_EQ(header.type, FrameType::ack);
    const auto ack = target.peer.hear<WireAck>();
    EXPECT_EQ(ack.batch, 9U);
    EXPECT_EQ(ack.bytes, 200U);
    return tcp::code_from_wire(ack.code);
  };
  EXPECT_EQ(code_of({good, (1 << 20) - 99, 0, 100, 1}), Code::invalid_argument);
  EXPECT_EQ(code_of({good, UINT64_MAX - 50, 0, 100, 1}), Code::invalid_argument);
  EXPECT_EQ(code_of({good, 0, UINT64_MAX / 2, 50, 2}), Code::invalid_argument);
  EXPECT_EQ(code_of({good, 0, 1 << 20, 50, 2}), Code::invalid_argument);
  EXPECT_EQ(code_of({good + 1, 0, 0, 100, 1}), Code::permission);
  EXPECT_EQ(code_of({good + (1ULL << 32), 0, 0, 100, 1}), Code::permission);
  EXPECT_EQ(code_of({target.read_only, 0, 0, 100, 1}), Code::permission);
  std::memcpy(target.before.data(), data.data(), 100);
  std::memcpy(target.before.data() + 200, data.data() + 200, 100);
  EXPECT_TRUE(target.bytes == target.before);
  EXPECT_TRUE(target.secret == secret_before);
  EXPECT_EQ(metric(target.host, "kvlane_tcp_refused_runs_total"), 7);
}

TEST(TcpHostile, LyingFramesCloseTheLane) {
  const test::ExpectLog log("tcp.");
  const auto closes = [](auto make) {
    Target target;
    say(target.peer.lane, make(target));
    EXPECT_TRUE(target.peer.closed());
    EXPECT_EQ(metric(target.host, "kvlane_tcp_malformed_frames_total"), 1);
    EXPECT_TRUE(target.bytes == target.before);
  };
  const auto frame = [](auto change) {
    return [change](Target& target) {
      const WireRun run{target.memory, 0, 0, 8, 1};
      std::vector<std::byte> bytes = FakePeer::write_frame(1, std::span(&run, 1), {});
      auto header = tcp::read_wire<FrameHeader>(bytes.data());
      header.data_bytes = 8;
      change(header);
      tcp::write_wire(bytes.data(), header);
      return bytes;
    };
  };
  closes(frame([](FrameHeader& h) { h.magic ^= 1; }));
  closes(frame([](FrameHeader& h) { h.type = static_cast<FrameType>(77); }));
  closes(frame([](FrameHeader& h) { h.count = tcp::kFrameRunsMax + 1; }));
  closes(frame([](FrameHeader& h) { h.data_bytes = 7; }));
  closes(frame([](FrameHeader& h) { h.data_bytes = 9; }));
  closes(frame([](FrameHeader& h) { h.data_bytes = UINT64_MAX; }));
  closes(frame([](FrameHeader& h) { h.note_bytes = 33; }));
  closes(frame([](FrameHeader& h) { h.flags = 255; }));
  // Answers to what was never asked.
  closes(frame([](FrameHeader& h) { h.type = FrameType::read_data, h.count = 0; }));
  closes(frame([](FrameHeader& h) { h.type = FrameType::read_done, h.count = 0; }));
  closes(frame([](FrameHeader& h) { h.type = FrameType::ack, h.data_bytes = 0; }));
}

TEST(TcpHostile, MoreReadsThanAllowedCloseTheLane) {
  Target target;
  FrameHeader header;
  header.type = FrameType::read_request;
  header.count = 1024;
  header.data_bytes = 1024 * 512;
  const std::vector<WireRun> runs(1024, WireRun{target.memory, 0, 0, 512, 1});
  for (int i = 0; i < 64; ++i) {
    say(target.peer.lane, raw_bytes(header));
    say(target.peer.lane, std::as_bytes(std::span(runs)));
  }
  const SteadyClock clock;
  const std::int64_t deadline = clock.now_ns() + kPatienceNs;
  while (metric(target.host, "kvlane_tcp_malformed_frames_total") != 1) {
    target.host.poll();
    ASSERT_LT(clock.now_ns(), deadline);
  }
}

// Valid frames with a few bits changed, and pure noise; KVL_TEST_SEED repeats a failure.
TEST(TcpHostile, FuzzedFramesHarmNobody) {
  const test::ExpectLog log("tcp.");
  std::random_device device;
  const char* const given = std::getenv("KVL_TEST_SEED");
  const std::uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10)
                                              : (std::uint64_t{device()} << 32 | device());
  SCOPED_TRACE("KVL_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  Host host(Flags{{"tcp.connect_timeout_ms", "200"}});
  std::vector<std::byte> bytes = random_bytes(1 << 16, 1), fence = random_bytes(1 << 16, 2);
  const std::vector<std::byte> fence_before = fence;
  const MemoryId memory = host.add(memory_of(bytes, Access::remote_all));
  host.add(memory_of(fence, Access::remote_read));
  for (int round = 0; round < 60; ++round) {
    FakePeer peer(host);
    const std::uint64_t name = peer.name(memory);
    for (std::uint64_t i = 0; i < 40; ++i) {
      std::vector<WireRun> runs(random() % 5);
      std::uint64_t total = 0;
      for (WireRun& run : runs) {
        run = {name, random() % (1 << 16), random() % 256,
               static_cast<std::uint32_t>(random() % 512 + 1),
               static_cast<std::uint32_t>(random() % 4 + 1)};
        total += std::uint64_t{run.bytes} * run.count;
      }
      std::vector<std::byte> frame =
          FakePeer::write_frame(random() % 3, runs, random_bytes(total, i));
      if (random() % 3 == 0) {  // a request in the shape of a write
        auto header = tcp::read_wire<FrameHeader>(frame.data());
        header.type = static_cast<FrameType>(random() % 6);
        tcp::write_wire(frame.data(), header);
      }
      for (std::uint64_t flips = random() % 3; flips > 0; --flips) {
        const std::size_t at = random() % std::min<std::size_t>(frame.size(), 96);
        frame[at] ^= static_cast<std::byte>(1U << (random() % 8));
      }
      say(peer.lane, frame);
      host.poll();
    }
    peer.lane.reset();
    host.link->close_peer(peer.peer);
    while (!host.take(Event::Kind::peer_down)) host.poll();
    host.events.clear();
  }
  EXPECT_TRUE(fence == fence_before);
}

}  // namespace
}  // namespace kvl::test
