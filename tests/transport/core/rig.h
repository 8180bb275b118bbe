// Two engines over Links that do what the test says, in virtual time.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvl/engine.h"
#include "tests/transport/core/scripted_transport.h"
#include "transport/sim/sim_control_net.h"
#include "transport/sim/sim_world.h"

namespace kvl::test {

inline constexpr std::int64_t kMs = 1'000'000;
inline constexpr std::int64_t kLongMs = 3000;  // longer than any pause of the engine below
inline constexpr std::int64_t kHeartbeatMs = 100, kPeerTimeoutMs = 500;
inline constexpr std::uint64_t kRigBytes = 64 << 20;  // registered, never touched

struct RigOptions {
  std::size_t devices = 1;
  Fence fence = Fence::immediate;
  bool sees_processes = false;
  std::vector<ScriptedDevices> transports;                    // instead of `devices` alike
  std::vector<std::pair<std::string, std::string>> settings;  // beside the rig's own
};

// Engine 0 has dialed engine 1, and both have registered a buffer.
class Rig {
 public:
  explicit Rig(RigOptions options) : options_(std::move(options)) {
    for (std::uint32_t i = 0; i < 2; ++i) open(i);
    peer_ = engine(0).connect(sim::SimControlNet::address_of(1)).value();
    EXPECT_TRUE(until(
        [&] { return has(0, EngineEvent::Kind::peer_up) && has(1, EngineEvent::Kind::peer_up); }));
    run(100);  // the announcements of memory follow
    events_[0].clear();
    events_[1].clear();
  }

  sim::SimWorld& world() { return world_; }
  Engine& engine(std::size_t at) { return *engines_[at]; }
  // Of that engine, in the order of its rails.
  ScriptedLink& link(std::size_t at, std::size_t index = 0) { return *links_[at][index]; }
  PeerHandle peer() const { return peer_; }

  // Engine 1 stands still from now on: its connections live, it says nothing.
  void stop_other() { driven_ = 1; }
  void step() {
    world_.advance(kMs);
    for (std::size_t i = 0; i < driven_; ++i) {
      EngineEvent taken[16];
      const std::size_t count = engines_[i]->poll(taken);
      for (std::size_t k = 0; k < count; ++k) events_[i].push_back(std::move(taken[k]));
    }
  }
  void run(std::int64_t ms) {
    for (; ms > 0; --ms) step();
  }
  // False: not within the (virtual) time.
  template <typename Condition>
  bool until(Condition condition, std::int64_t most_ms = kLongMs) {
    for (std::int64_t ms = 0; ms < most_ms; ++ms) {
      if (condition()) return true;
      step();
    }
    return condition();
  }
  bool has(std::size_t at, EngineEvent::Kind kind) const {
    return std::ranges::any_of(events_[at], [kind](const auto& e) { return e.kind == kind; });
  }
  // The next event of the kind, removed; nothing when it does not come in time.
  std::optional<EngineEvent> next(std::size_t at, EngineEvent::Kind kind,
                                  std::int64_t most_ms = kLongMs) {
    if (!until([&] { return has(at, kind); }, most_ms)) return std::nullopt;
    const auto found = std::ranges::find(events_[at], kind, &EngineEvent::kind);
    EngineEvent event = std::move(*found);
    events_[at].erase(found);
    return event;
  }

  // From engine 0 to engine 1; one piece unless it is larger than that.
  void write(std::uint32_t bytes = 4096, ReadyToken after = {}) {
    op_.bytes = bytes;
    Transfer transfer;
    transfer.peer = peer_;
    transfer.ops = {&op_, 1};
    transfer.locals = {&handles_[0], 1};
    transfer.remotes = {&handles_[1], 1};
    transfer.timeout_ms = 60'000;
    transfer.after = after;
    ASSERT_TRUE(engine(0).submit(transfer).ok());
  }

 private:
  void open(std::uint32_t index) {
    Settings::Source source;
    source.environment = false;
    source.flags = {{"progress", "caller"},
                    {"pieces_inflight", "1"},
                    {"heartbeat_ms", std::to_string(kHeartbeatMs)},
                    {"peer_timeout_ms", std::to_string(kPeerTimeoutMs)},
                    {"reconnect_ms", "20"},
                    {"connect_timeout_ms", "1000"}};
    for (const auto& setting : options_.settings) {
      std::erase_if(source.flags, [&](const auto& flag) { return flag.first == setting.first; });
      source.flags.push_back(setting);
    }
    EngineWorld world;
    world.clock = &world_.clock();
    world.control = std::make_unique<sim::SimControlNet>(world_, index);
    if (options_.transports.empty()) {
      options_.transports.push_back(ScriptedDevices::alike(options_.devices, options_.fence));
    }
    for (const ScriptedDevices& devices : options_.transports) {
      world.transports.push_back(std::make_unique<ScriptedTransport>(devices, &links_[index]));
    }
    world.seed = 1 + index;
    world.pid = world_.pid(index);
    world.open_process = [this](std::int32_t pid) {
      return options_.sees_processes ? world_.open_process(pid) : -1;
    };
    engines_[index] =
        Engine::open(Settings::load(engine_settings(), source).value(), std::move(world)).value();
    Memory memory;
    memory.data = &memory_[index];
    memory.bytes = kRigBytes;
    memory.access = Access::remote_all;
    handles_[index] = engine(index).register_memory(memory).value();
  }

  RigOptions options_;
  std::size_t driven_ = 2;
  sim::SimWorld world_{sim::SimOptions{}};
  std::byte memory_[2] = {};  // an address: no byte moves
  PageOp op_{.bytes = 4096};
  std::vector<ScriptedLink*> links_[2];
  std::unique_ptr<Engine> engines_[2];
  std::deque<EngineEvent> events_[2];
  MemoryHandle handles_[2];
  PeerHandle peer_;
};

}  // namespace kvl::test
