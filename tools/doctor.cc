// `kvlane doctor`: which transport two endpoints use, and why not a better one.
#include <array>
#include <cstdio>

#include "bench/support/output.h"
#include "kvl/engine.h"
#include "tools/program.h"

namespace kvl::tools {
namespace {

using bench::json;
using bench::Row;

struct Flags {
  std::string address, require;
  bool json = false;
  SettingFlags settings;
};

constexpr std::int64_t kMarginMs = 1000;  // beyond the engine's own connect deadline

// Until `here` has the peer up, or down. The other engine, if it is ours, is driven too.
Status await_peer(Engine& here, Engine* there, PeerHandle peer, std::int64_t timeout_ms) {
  const SteadyClock clock;
  const std::int64_t deadline_ns = clock.now_ns() + timeout_ms * 1'000'000;
  std::array<EngineEvent, 16> events;
  while (clock.now_ns() < deadline_ns) {
    if (there != nullptr) there->poll(events);
    const std::size_t count = here.poll(events);
    for (const EngineEvent& event : std::span(events).first(count)) {
      if (event.peer != peer) continue;
      if (event.kind == EngineEvent::Kind::peer_up) return {};
      if (event.kind == EngineEvent::Kind::peer_down) return {event.code, "no path to the peer"};
    }
    if (count == 0) here.wait(10);
  }
  return {Code::timed_out, "no path to the peer within connect_timeout_ms"};
}

// "tcp: because shm is not in one domain, …" or why there is nothing.
std::string verdict(const PeerInfo& peer, const Status& status) {
  std::string used, reserve;
  for (const PathInfo& path : peer.paths) {
    const std::string name = path.transport + (path.device.empty() ? "" : ":" + path.device);
    if (path.in_use) {
      used += (used.empty() ? "" : " + ") + name;
    } else if (used.empty()) {
      reserve += (reserve.empty() ? "" : "; ") + name + ": " + path.reason;
    }
  }
  if (!status.ok()) {
    return "no path: " + status.to_string() + (reserve.empty() ? "" : " (" + reserve + ")");
  }
  return used + (reserve.empty() ? "; nothing better is built in" : "; not better, " + reserve);
}

void print(const Flags& flags, const std::string& own, const PeerInfo& peer, const Status& status) {
  const std::string text = verdict(peer, status);
  if (flags.json) {
    std::string paths, used;
    for (const PathInfo& path : peer.paths) {
      if (path.in_use && used.empty()) used = path.transport;
      paths += (paths.empty() ? "" : ", ") + json(Row()
                                                      .set("transport", path.transport)
                                                      .set("device", path.device)
                                                      .set("in_use", path.in_use)
                                                      .set("reason", path.reason));
    }
    Row row;
    row.set("here", own).set("peer", peer.address).set("up", status.ok());
    row.set("transport", used.empty() ? bench::Value() : bench::Value(used));
    row.set("verdict", text);
    std::string line = json(row);
    line.pop_back();
    std::printf("%s, \"paths\": [%s]}\n", line.c_str(), paths.c_str());
    return;
  }
  std::printf("%s <-> %s\n", own.c_str(), peer.address.c_str());
  for (const PathInfo& path : peer.paths) {
    std::printf("  %-10s %-12s %s\n", path.transport.c_str(), path.device.c_str(),
                path.in_use ? "used" : ("not used: " + path.reason).c_str());
  }
  std::printf("%s\n", text.c_str());
}

Result<std::unique_ptr<Engine>> open_engine(Program& program, SettingFlags flags,
                                            const char* listen) {
  if (listen != nullptr) flags.emplace_back("listen", listen);
  const auto settings = program.settings(flags);
  if (!settings.ok()) return settings.status();
  std::string error;
  auto engine = Engine::open(*settings, &error);
  if (!engine.ok()) program.fail(error.empty() ? engine.status().to_string() : error);
  return engine;
}

void examine(Program& program, const Flags& flags) {
  SettingFlags settings = flags.settings;
  if (!flags.require.empty()) settings.emplace_back("require", flags.require);
  const auto here = open_engine(program, settings, nullptr);
  if (!here.ok()) return;
  std::unique_ptr<Engine> there;
  std::string address = flags.address;
  if (address.empty()) {
    auto second = open_engine(program, flags.settings, "127.0.0.1:0");
    if (!second.ok()) return;
    there = std::move(*second);
    address = there->address();
  }
  const auto loaded = program.settings(settings);
  if (!loaded.ok()) return;
  const auto config = loaded->read<EngineConfig>(engine_settings());
  const auto peer = (*here)->connect(address);
  if (!peer.ok()) {
    return program.fail("'" + address + "' is not an address: " + peer.status().to_string());
  }
  const Status status =
      await_peer(**here, there.get(), *peer, config.connect_timeout_ms + kMarginMs);
  const auto info = (*here)->describe(*peer);
  if (!info.ok()) return program.fail(info.status().to_string());
  print(flags, (*here)->address(), *info, status);
  if (!status.ok()) program.exit_status = 1;
}

}  // namespace

void add_doctor(CLI::App& app, Program& program) {
  CLI::App* const command = app.add_subcommand(
      "doctor", "which transport two endpoints would use, and why not a better one");
  command->footer(
      "Exit status 1: no path, or not the required one; the reason is printed.\n"
      "Examples:\n"
      "  kvlane doctor                             two engines on this machine\n"
      "  host A: kvlane bench --serve 10.0.0.1:4711\n"
      "  host B: kvlane doctor 10.0.0.1:4711 --require tcp");
  const auto flags = std::make_shared<Flags>();
  command->add_option("ADDR", flags->address, "HOST:PORT of a running engine; none: a local one");
  command->add_option("--require", flags->require, "TRANSPORT[:DEVICE] that must be the one")
      ->type_name("T");
  command->add_flag("--json", flags->json, "one JSON object");
  std::vector<Setting> rows = engine_settings();
  for (const Setting& row : transport_settings()) rows.push_back(row);
  std::erase_if(rows, [](const Setting& row) { return row.name == "require"; });
  add_setting_flags(*command, rows, "", flags->settings);
  command->callback([&program, flags] { examine(program, *flags); });
}

}  // namespace kvl::tools
