// Two tcp Links in one process with a control channel between them, driven by the test's thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvl/clock.h"
#include "kvl/memory.h"
#include "kvl/transport.h"
#include "transport/tcp/tcp_link.h"

namespace kvl {
std::unique_ptr<Transport> make_tcp_transport(const Settings&);
std::vector<Setting> tcp_settings();
}  // namespace kvl

namespace kvl::test {
// So that one program may hold the hosts of both transports.
inline namespace over_tcp {

inline constexpr std::int64_t kPatienceNs = 20'000'000'000;

// Keeps what one Link says until the test delivers it.
class HeldControl final : public ControlChannel {
 public:
  Status send(PeerId, std::span<const std::byte> bytes) override {
    if (broken) return {Code::peer_lost, "control channel is broken"};
    held.emplace_back(bytes.begin(), bytes.end());
    return {};
  }
  std::deque<std::vector<std::byte>> held;
  bool broken = false;
};

using Flags = std::vector<std::pair<std::string, std::string>>;

// A Link with what it lives on, and the events it has given.
struct Host {
  explicit Host(Flags flags = {}, std::unique_ptr<MemoryOps> memory_ops = make_host_memory_ops())
      : ops(std::move(memory_ops)) {
    Settings::Source source;
    source.environment = false;
    source.flags = std::move(flags);
    std::string error;
    Result<Settings> settings = Settings::load(tcp_settings(), source, &error);
    EXPECT_TRUE(settings.ok()) << error;
    transport = make_tcp_transport(*settings);
    const std::vector<Device> devices = transport->devices();
    EXPECT_EQ(devices.size(), 1U) << transport->why_unusable();
    Result<std::unique_ptr<Link>> opened =
        transport->open(devices.at(0), LinkContext{control, *ops, clock});
    EXPECT_TRUE(opened.ok()) << opened.status().to_string();
    link = std::move(opened).value();
  }

  void poll() {
    std::array<Event, 16> got{};
    const std::size_t n = link->poll(got);
    events.insert(events.end(), got.begin(), got.begin() + static_cast<std::ptrdiff_t>(n));
  }
  std::optional<Event> take(Event::Kind kind) {
    for (auto e = events.begin(); e != events.end(); ++e) {
      if (e->kind != kind) continue;
      const Event event = *e;
      events.erase(e);
      return event;
    }
    return std::nullopt;
  }
  MemoryId add(const Memory& memory) {
    Result<MemoryId> id = link->add_memory(memory);
    EXPECT_TRUE(id.ok()) << id.status().to_string();
    return id.ok() ? *id : MemoryId{};
  }
  tcp::TcpLink& tcp() { return static_cast<tcp::TcpLink&>(*link); }

  HeldControl control;
  SteadyClock clock;
  std::unique_ptr<MemoryOps> ops;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<Link> link;
  std::deque<Event> events;
};

inline double metric(Host& host, std::string_view name) {
  struct Find final : MetricVisitor {
    std::string_view wanted;
    double value = -1;
    void counter(std::string_view n, std::string_view, const MetricLabels&, double v) override {
      if (n == wanted) value = std::max(value, 0.0) + v;  // over all labels
    }
    void gauge(std::string_view, std::string_view, const MetricLabels&, double) override {}
  } find;
  find.wanted = name;
  host.link->visit_metrics(find, {});
  return find.value;
}

// Two connected hosts; `a` dialed.
struct Pair {
  explicit Pair(const Flags& flags = {}) : a(flags), b(flags) { connect(); }
  // Two hosts that believe to be on two machines.
  struct Apart {};
  Pair(Apart, const Flags& flags) : a(flags), b(flags), apart(true) { connect(); }
  Pair(const Flags& flags, std::unique_ptr<MemoryOps> ops_a, std::unique_ptr<MemoryOps> ops_b)
      : a(flags, std::move(ops_a)), b(flags, std::move(ops_b)) {
    connect();
  }
  Pair(const Flags& flags, std::unique_ptr<MemoryOps> ops_a, std::unique_ptr<MemoryOps> ops_b,
       const PeerSecurity& with)
      : a(flags, std::move(ops_a)), b(flags, std::move(ops_b)), security(with) {
    connect();
  }
  void connect() {
    to_b = *a.link->open_peer(PeerRole::active);
    to_a = *b.link->open_peer(PeerRole::passive);
    if (security) {
      EXPECT_TRUE(a.link->secure_peer(to_b, *security).ok());
      EXPECT_TRUE(b.link->secure_peer(to_a, *security).ok());
    }
    EXPECT_TRUE(b.link->accept(to_a, offer_of(a, to_b)).ok());
    EXPECT_TRUE(a.link->accept(to_b, offer_of(b, to_a)).ok());
    EXPECT_EQ(await(a, Event::Kind::peer_up).peer, to_b);
    EXPECT_EQ(await(b, Event::Kind::peer_up).peer, to_a);
  }
  Blob offer_of(Host& host, PeerId peer) const {
    Blob blob = *host.link->offer(peer);
    if (!apart) return blob;
    auto offer = *tcp::decode_offer(blob);
    offer.host[0] ^= std::byte{1};
    return tcp::encode(offer);
  }
  // Control messages, then both links.
  void step() {
    deliver();
    a.poll();
    b.poll();
  }
  void deliver() {
    for (; !a.control.held.empty(); a.control.held.pop_front()) {
      if (b.link) b.link->on_control(to_a, a.control.held.front());
    }
    for (; !b.control.held.empty(); b.control.held.pop_front()) {
      if (a.link) a.link->on_control(to_b, b.control.held.front());
    }
  }
  template <typename Condition>
  ::testing::AssertionResult until(Condition condition) {
    const SteadyClock clock;
    const std::int64_t deadline = clock.now_ns() + kPatienceNs;
    while (!condition()) {
      if (clock.now_ns() > deadline) return ::testing::AssertionFailure() << "took too long";
      step();
    }
    return ::testing::AssertionSuccess();
  }
  Event await(Host& host, Event::Kind kind) {
    std::optional<Event> event;
    EXPECT_TRUE(until([&] { return (event = host.take(kind)).has_value(); }))
        << "no event of kind " << static_cast<int>(kind);
    return event.value_or(Event{});
  }
  // b's memory as a names it.
  RemoteId import(MemoryId memory_of_b) {
    Result<Blob> blob = b.link->export_memory(memory_of_b, to_a);
    EXPECT_TRUE(blob.ok()) << blob.status().to_string();
    Result<RemoteId> name = a.link->import_memory(to_b, *blob);
    EXPECT_TRUE(name.ok()) << name.status().to_string();
    return name.ok() ? *name : RemoteId{};
  }
  // A batch of a's between one memory here and one there.
  Batch batch(Direction direction, std::span<const PageOp> ops, std::uint64_t ticket) {
    Batch one;
    one.ticket = Ticket{ticket};
    one.peer = to_b;
    one.direction = direction;
    one.ops = ops;
    one.locals = std::span(&local, 1);
    one.remotes = std::span(&remote, 1);
    return one;
  }
  void share(const Memory& of_a, const Memory& of_b) {
    local = a.add(of_a);
    memory_b = b.add(of_b);
    remote = import(memory_b);
  }
  Host a, b;
  bool apart = false;
  std::optional<PeerSecurity> security;
  PeerId to_b, to_a;  // as a and b name each other
  MemoryId local, memory_b;
  RemoteId remote;
};

inline std::vector<std::byte> random_bytes(std::size_t bytes, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> out(bytes + 8);
  for (std::size_t i = 0; i < bytes; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(out.data() + i, &word, 8);
  }
  out.resize(bytes);
  return out;
}

inline Memory memory_of(std::vector<std::byte>& bytes, Access access = Access::local) {
  return {bytes.data(), bytes.size(), MemoryKind::host, 0, access, -1, 0};
}

}  // namespace over_tcp
}  // namespace kvl::test
