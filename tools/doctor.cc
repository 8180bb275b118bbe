// `kvlane doctor`: which transport two endpoints use, why not a better one, what is wrong with this
// host, and what a failure means.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "bench/support/output.h"
#include "kvl/engine.h"
#include "kvl/failure.h"
#include "tools/doctor/checks.h"
#include "tools/doctor/rate.h"
#include "tools/program.h"
#include "tools/security_report.h"

namespace kvl::tools {
namespace {

using bench::json;
using bench::Row;

struct Flags {
  std::string address, require, explain;
  bool json = false;
  double seconds = 1;
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
      if (event.kind == EngineEvent::Kind::peer_down && event.code == Code::permission) {
        return {event.code, "the two sides do not have the same secret; set secret_file on both"};
      }
      if (event.kind == EngineEvent::Kind::peer_down) return {event.code, "no path to the peer"};
    }
    if (count == 0) here.wait(10);
  }
  return {Code::timed_out, "no path to the peer within connect_timeout_ms"};
}

// What the codes of a path cannot say.
std::string path_remedy(const PathInfo& path) {
  const bool silent = path.reason.find(to_string(Code::timed_out)) != std::string::npos;
  if (path.in_use || path.transport != "libfabric" || !silent) return "";
  return " (an EFA that hears nothing: the security group must let all traffic from and to itself "
         "pass, both ways, and both hosts be in one subnet)";
}

// "tcp: because shm is not in one domain, …" or why there is nothing.
std::string verdict(const PeerInfo& peer, const Status& status) {
  std::string used, reserve;
  for (const PathInfo& path : peer.paths) {
    const std::string name = path.transport + (path.device.empty() ? "" : ":" + path.device);
    if (path.in_use) {
      used += (used.empty() ? "" : " + ") + name;
    } else if (used.empty()) {
      reserve += (reserve.empty() ? "" : "; ") + name + ": " + path.reason + path_remedy(path);
    }
  }
  if (!status.ok()) {
    return "no path: " + status.to_string() + (reserve.empty() ? "" : " (" + reserve + ")");
  }
  return used + (reserve.empty() ? "; nothing better is built in" : "; not better, " + reserve);
}

std::string checks_json(const std::vector<Check>& checks) {
  std::string out;
  for (const Check& check : checks) {
    out += (out.empty() ? "" : ", ") + json(Row()
                                                .set("name", check.name)
                                                .set("state", std::string(to_string(check.state)))
                                                .set("found", check.found)
                                                .set("remedy", check.remedy));
  }
  return "[" + out + "]";
}

void print_checks(const std::vector<Check>& checks) {
  for (const Check& check : checks) {
    std::printf("  %-16s %-8s %s%s\n", check.name.c_str(),
                std::string(to_string(check.state)).c_str(), check.found.c_str(),
                check.remedy.empty() ? "" : (": " + check.remedy).c_str());
  }
}

// What protects this connection.
std::string protection(const PeerInfo& peer) {
  if (!peer.up) return "nothing: not connected";
  if (!peer.authenticated) return "nothing: neither side has a secret";
  return peer.encrypted ? "authenticated; what leaves the host is encrypted"
                        : "authenticated; control messages are sealed, pages are not";
}

void print(const Flags& flags, const SecurityReport& security, const std::string& own,
           const PeerInfo& peer, const Status& status, const std::vector<Check>& checks,
           double gb_per_s) {
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
    row.set("verdict", text).set("gb_per_s", gb_per_s);
    row.set("remedy", std::string(status.ok() ? "" : remedy(status.code())));
    row.set("authenticated", peer.authenticated).set("encrypted", peer.encrypted);
    row.set("secret", security.authentication);
    std::string line = json(row);
    line.pop_back();
    std::printf("%s, \"paths\": [%s], \"checks\": %s}\n", line.c_str(), paths.c_str(),
                checks_json(checks).c_str());
    return;
  }
  std::printf("%s <-> %s\n", own.c_str(), peer.address.c_str());
  for (const PathInfo& path : peer.paths) {
    std::printf("  %-10s %-12s %s\n", path.transport.c_str(), path.device.c_str(),
                path.in_use ? "used" : ("not used: " + path.reason + path_remedy(path)).c_str());
  }
  std::printf("  protected by: %s\n", protection(peer).c_str());
  std::printf("  peers must know: %s; encryption: %s\n", security.authentication.c_str(),
              security.encryption.c_str());
  std::printf("%s\n", text.c_str());
  if (!status.ok()) std::printf("what to do: %s\n", std::string(remedy(status.code())).c_str());
  std::puts(flags.address.empty() ? "this host" : "this host, and the path");
  print_checks(checks);
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

void explain(Program& program, const Flags& flags) {
  for (const Failure& failure : failures()) {
    if (to_string(failure.code) != flags.explain) continue;
    const auto line = [](const char* head, std::string_view text) {
      std::printf("%-10s %s\n", head, std::string(text).c_str());
    };
    line("meaning", failure.meaning);
    line("program", failure.caller);
    line("operator", failure.remedy);
    line("counted in", failure.counters);
    return;
  }
  program.fail("no failure has the code '" + flags.explain + "'; docs/failures.md lists them");
}

void examine(Program& program, const Flags& flags) {
  if (!flags.explain.empty()) return explain(program, flags);
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
  std::vector<Check> checks = check_host(*loaded);
  double gb_per_s = NAN;
  if (status.ok() && !flags.address.empty() && flags.seconds > 0) {
    checks.push_back(check_rate(*loaded, address, flags.seconds, &gb_per_s));
  }
  print(flags, report_security(*loaded), (*here)->address(), *info, status, checks, gb_per_s);
  const bool problem = std::ranges::any_of(
      checks, [](const Check& check) { return check.state == Check::State::problem; });
  if (!status.ok() || problem) program.exit_status = 1;
}

}  // namespace

void add_doctor(CLI::App& app, Program& program) {
  CLI::App* const command = app.add_subcommand(
      "doctor",
      "which transport two endpoints would use, why not a better one, and what is wrong here");
  command->footer(
      "Exit status 1: no path, not the required one, or a problem of this host; what to do is "
      "printed.\n"
      "Examples:\n"
      "  kvlane doctor                             two engines on this machine\n"
      "  host A: kvlane bench --serve 10.0.0.1:4711\n"
      "  host B: kvlane doctor 10.0.0.1:4711 --require tcp\n"
      "  kvlane --config kvlane.toml doctor        certificates, keys and ports of that file, too\n"
      "  kvlane doctor --explain corrupt           what a code means, and what to do");
  const auto flags = std::make_shared<Flags>();
  command->add_option("ADDR", flags->address, "HOST:PORT of a running engine; none: a local one");
  command->add_option("--require", flags->require, "TRANSPORT[:DEVICE] that must be the one")
      ->type_name("T");
  command->add_option("--explain", flags->explain, "CODE of a failure, as logs and metrics name it")
      ->type_name("CODE");
  command
      ->add_option("--seconds", flags->seconds,
                   "measure the path to a `kvlane bench --serve` that long; 0: do not")
      ->check(number_between(0, 3600))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "one JSON object");
  std::vector<Setting> rows = engine_settings();
  for (const Setting& row : transport_settings()) rows.push_back(row);
  std::erase_if(rows, [](const Setting& row) { return row.name == "require"; });
  add_setting_flags(*command, rows, "", flags->settings);
  command->callback([&program, flags] { examine(program, *flags); });
}

}  // namespace kvl::tools
