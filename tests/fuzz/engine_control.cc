// An engine whose control connections say anything in any order, in virtual time, with a link that
// takes part in it: every peer that dialed in is forgotten when it has left, and what it may make
// the engine keep is bounded.
#include <algorithm>
#include <deque>

#include "bench/support/null_transport.h"
#include "kvl/engine.h"
#include "tests/fuzz/fuzz.h"
#include "transport/core/control_net.h"
#include "transport/core/handshake.h"

namespace kvl {
std::unique_ptr<Transport> make_tcp_transport(const Settings&);
}

namespace kvl::fuzz {
namespace {

constexpr std::int64_t kMs = 1'000'000;

class ManualClock final : public Clock {
 public:
  std::int64_t now_ns() const override { return now; }
  std::int64_t now = 1'000 * kMs;
};

// Hands the engine what the input says; what the engine says is counted and forgotten.
class ScriptedNet final : public ControlNet {
 public:
  std::string address() const override { return "127.0.0.1:9"; }
  Result<ConnId> connect(std::string_view) override {
    return Status{Code::unavailable, "nobody to dial"};
  }
  Status send(ConnId, std::span<const std::byte> message) override {
    require(message.size() <= kMessageBytesMax, "messages are bounded");
    return {};
  }
  void close(ConnId conn) override {
    std::erase_if(events, [&](const ControlEvent& e) { return e.conn == conn; });
    if (conn == open) open = {};
  }
  void poll(std::vector<ControlEvent>& out) override {
    std::move(events.begin(), events.end(), std::back_inserter(out));
    events.clear();
  }
  int wait_fd() const override { return -1; }

  std::deque<ControlEvent> events;
  ConnId open;
  std::uint64_t ids = 0;
};

struct Scene {
  Scene() {
    auto owned = std::make_unique<ScriptedNet>();
    net = owned.get();
    EngineWorld world{.clock = &clock, .control = std::move(owned), .seed = 1};
    Settings::Source source{.environment = false};
    source.flags = {{"progress", "caller"}, {"peers_max", "8"}};
    std::vector<Setting> rows = engine_settings();
    for (const Setting& row : transport_settings()) rows.push_back(row);
    const auto settings = Settings::load(rows, source);
    world.transports.push_back(bench::make_null_transport());
    world.transports.push_back(make_tcp_transport(*settings));
    std::string error;
    auto opened = Engine::open(*settings, std::move(world), &error);
    require(opened.ok(), error.c_str());
    engine = *std::move(opened);
    const Memory mine{memory.data(), memory.size(), MemoryKind::host, 0, Access::remote_all, -1, 0};
    require(engine->register_memory(mine).ok(), "memory");
  }
  void turn(std::int64_t ms) {
    clock.now += ms * kMs;
    EngineEvent events[16];
    for (int i = 0; i < 3; ++i) {
      std::size_t got = 0;
      while ((got = engine->poll(events)) > 0) {
        for (std::size_t k = 0; k < got; ++k) {
          if (events[k].kind == EngineEvent::Kind::peer_up) up = events[k].peer;
        }
      }
    }
  }
  std::uint64_t peers() const {
    struct Find final : MetricVisitor {
      void counter(std::string_view, std::string_view, const MetricLabels&, double) override {}
      void gauge(std::string_view name, std::string_view, const MetricLabels&, double v) override {
        if (name == "kvlane_peers") value = v;
      }
      double value = 0;
    } find;
    engine->visit_metrics(find);
    return static_cast<std::uint64_t>(find.value);
  }

  ManualClock clock;
  ScriptedNet* net = nullptr;
  std::vector<std::byte> memory = std::vector<std::byte>(8192);
  std::unique_ptr<Engine> engine;
  PeerHandle up;
};

enum class Step : std::uint8_t { message, accept, close, time, submit, count };

void take_step(Scene& scene, Input& parts) {
  using Kind = ControlEvent::Kind;
  const auto step = parts.number<std::uint8_t>() % static_cast<unsigned>(Step::count);
  ScriptedNet& net = *scene.net;
  switch (static_cast<Step>(step)) {
    case Step::message: {
      const Bytes bytes = parts.piece();
      if (net.open.value == 0) return;
      net.events.push_back({Kind::message, net.open, {}, {bytes.begin(), bytes.end()}, {}});
      return scene.turn(0);
    }
    case Step::accept:
      net.open = {++net.ids};
      net.events.push_back({Kind::accepted, net.open, {}, {}, "127.0.0.1:5"});
      return;
    case Step::close:
      if (net.open.value == 0) return;
      net.events.push_back({Kind::closed, net.open, {Code::peer_lost, "closed"}, {}, {}});
      net.open = {};
      return scene.turn(0);
    case Step::time:
      return scene.turn(parts.number<std::uint8_t>() * 10);
    default: {
      const PageOp op{.bytes = 16};
      const MemoryHandle local{1}, remote{parts.number<std::uint8_t>()};
      Transfer transfer{.peer = scene.up};
      transfer.ops = {&op, 1};
      transfer.locals = {&local, 1};
      transfer.remotes = {&remote, 1};
      // What it names stays until the step is over; the deadline ends it.
      transfer.timeout_ms = 1;
      (void)scene.engine->submit(transfer);
      scene.turn(0);
      scene.turn(60'000);
    }
  }
}

}  // namespace

void fuzz_engine_control(Bytes input) {
  Scene scene;
  Input parts(input);
  scene.net->open = {++scene.net->ids};
  scene.net->events.push_back(
      {ControlEvent::Kind::accepted, scene.net->open, {}, {}, "127.0.0.1:5"});
  for (int i = 0; i < 256 && !parts.empty(); ++i) take_step(scene, parts);
  // Everybody falls silent: deadlines and heartbeats end what is left.
  for (int i = 0; i < 40; ++i) scene.turn(1'000);
  require(scene.peers() == 0, "a peer that has left is forgotten");
}

Seeds seeds_engine_control() {
  using control::Type;
  control::Hello hello;
  hello.id[0] = std::byte{1};
  hello.epoch = 1;
  hello.address = "127.0.0.1:5";
  hello.rails = {{"null", "null0", "null"}};
  const auto say = [](Bytes message) {
    const std::byte step{static_cast<std::uint8_t>(Step::message)};
    return join({{&step, 1}, piece(message)});
  };
  const auto do_step = [](Step step, std::uint8_t value) {
    return std::vector{static_cast<std::byte>(step), static_cast<std::byte>(value)};
  };
  const auto greet = join({say(control::encode(hello)),
                           say(control::encode(Type::rail_offer, {0, 0, 1}, seed("12345678")))});
  const auto memory = join({say(control::encode_memory(Type::memory_add, 9)),
                            say(control::encode_export({0, 0, 1}, 9, seed("12345678")))});
  return {
      join({greet, memory, do_step(Step::submit, 9),
            say(control::encode_memory(Type::memory_drop, 9)), say(control::encode(Type::bye))}),
      join({greet, say(control::encode_user(seed("hi"))), say(control::encode(Type::heartbeat)),
            do_step(Step::time, 200), say(control::encode(Type::rail_close, {0, 0, 1})),
            say(control::encode(Type::link_message, {0, 0, 1}, seed("x")))}),
      join({do_step(Step::time, 255), do_step(Step::accept, 0), greet})};
}

}  // namespace kvl::fuzz
