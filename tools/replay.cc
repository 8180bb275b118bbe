// kvlane replay: plays a request trace through a router and workers of its own and checks every
// page.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>

#include "kvl/page_layout.h"
#include "tools/program.h"
#include "tools/replay/client.h"
#include "tools/replay/fleet.h"
#include "tools/replay/outcome.h"
#include "tools/replay/trace.h"
#include "worker/worker_options.h"

namespace kvl::tools {
namespace {

constexpr std::uint64_t kRowsMax = 1'000'000;  // about 1 GB of built-in workload

struct Options {
  std::string trace;
  std::uint64_t limit = 0;
  bool json = false;
  std::string html;
  replay::WorkloadOptions workload;
  replay::FleetOptions fleet;
  replay::ClientOptions client;
};

std::string model_names() {
  std::string all;
  for (const NamedGeometry& known : known_geometries()) {
    all.append(all.empty() ? "" : ", ").append(known.name);
  }
  return all;
}

// Enough for the longest request and its neighbours, but not more than the machine should give.
std::uint64_t pool_bytes(const replay::Trace& trace, const ModelGeometry& model) {
  std::uint64_t longest = 0;
  for (const replay::TraceRow& row : trace.rows) longest = std::max(longest, row.input_tokens);
  const std::uint64_t need = (longest + 1024) * model.bytes_per_token();
  return std::clamp<std::uint64_t>(need * 2, 512ULL << 20,
                                   std::max<std::uint64_t>(need + (64U << 20), 1536ULL << 20));
}

void show(const replay::Progress& p, bool terminal, double& next_s) {
  if (!terminal && p.seconds < next_s && p.ended < p.total) return;
  next_s = p.seconds + 5;
  const double done =
      p.total == 0 ? 1 : static_cast<double>(p.ended) / static_cast<double>(p.total);
  const auto filled = static_cast<std::size_t>(done * 24);
  const std::string bar = std::string(filled, '#') + std::string(24 - filled, '.');
  std::fprintf(stderr,
               "%s[%s] %llu/%llu requests  %llu in flight  %.2f GB  %.2f GB/s  %llu pages "
               "verified, %llu wrong%s",
               terminal ? "\r" : "", bar.c_str(), static_cast<unsigned long long>(p.ended),
               static_cast<unsigned long long>(p.total),
               static_cast<unsigned long long>(p.sent - p.ended),
               static_cast<double>(p.bytes) / 1e9,
               p.seconds > 0 ? static_cast<double>(p.bytes) / 1e9 / p.seconds : 0.0,
               static_cast<unsigned long long>(p.pages),
               static_cast<unsigned long long>(p.pages_wrong), terminal ? "  " : "\n");
}

// False when something is wrong; the sentence has been printed.
bool prepare(Options& options, replay::Trace& trace, Program& program) {
  if (options.trace.empty()) {
    if (options.limit != 0) options.workload.requests = options.limit;
    trace = replay::make_workload(options.workload);
  } else {
    std::string error;
    auto loaded = replay::load_trace(options.trace, options.limit, &error);
    if (!loaded) {
      program.fail(error);
      return false;
    }
    trace = std::move(*loaded);
  }
  const auto model = find_geometry(options.fleet.model);
  if (!model) {
    program.fail("unknown model '" + options.fleet.model + "'; known are: " + model_names());
    return false;
  }
  if (options.fleet.pool_bytes == 0) options.fleet.pool_bytes = pool_bytes(trace, *model);
  return true;
}

void run(Options& options, Program& program) {
  replay::Trace trace;
  if (!prepare(options, trace, program)) return;
  if (!options.html.empty() && !std::ofstream(options.html, std::ios::app)) {
    return program.fail("cannot write " + options.html);
  }
  options.fleet.config_file = program.config_file;
  bench::catch_interrupts();
  std::string error;
  auto fleet = replay::Fleet::start(options.fleet, &error);
  if (!fleet) return program.fail(error);
  options.client.router_port = (*fleet)->router_port();

  replay::Setup setup;
  setup.trace = trace.name;
  setup.model = options.fleet.model;
  setup.time_scale = options.client.time_scale;
  setup.fleet =
      fmt::format("{} prefill (TP {}, PP {}) and {} decode (TP {}, PP {}) workers",
                  options.fleet.prefill, options.fleet.prefill_tp, options.fleet.prefill_pp,
                  options.fleet.decode, options.fleet.decode_tp, options.fleet.decode_pp);
  if (!options.json) {
    std::fprintf(stderr, "%zu requests (%s) -> router -> %s, every byte checked\n",
                 trace.rows.size(), trace.name.c_str(), setup.fleet.c_str());
  }
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  double next_s = 0;
  std::string lost;
  const auto outcomes = replay::play(
      trace, options.client, [&](const replay::Progress& p) { show(p, terminal, next_s); },
      [&] {
        lost = (*fleet)->lost();
        return lost.empty() && !bench::interrupted();
      });
  if (terminal) std::fputc('\n', stderr);
  if (!lost.empty()) program.fail("a process of the fleet has ended: " + lost);
  if (bench::interrupted()) program.fail("interrupted; what had not ended is not counted as ok");

  replay::Summary summary = replay::summarise(outcomes);
  // A request that fails for them answers with an error, without figures.
  summary.pages_wrong = std::max(
      summary.pages_wrong,
      static_cast<std::uint64_t>((*fleet)->metric(false, "kvlane_worker_pages_wrong_total")));
  setup.transport = (*fleet)->transports();
  setup.prefix_hit_tokens =
      static_cast<std::uint64_t>((*fleet)->metric(true, "kvlane_worker_cached_tokens_total"));
  if (!options.html.empty()) {
    std::ofstream page(options.html);
    page << replay::to_html(summary, setup, outcomes);
    if (!page.flush()) program.fail("cannot write " + options.html);
  }
  std::puts(
      (options.json ? replay::to_json(summary, setup) : replay::to_text(summary, setup)).c_str());
  if (summary.pages_wrong > 0 || summary.unended > 0 || summary.failed > 0) program.exit_status = 1;
}

}  // namespace

void add_replay(CLI::App& app, Program& program) {
  CLI::App* const command = app.add_subcommand(
      "replay", "play a request trace through router and workers, and check every page");
  const auto options = std::make_shared<Options>();
  Options& o = *options;
  command->add_option("--trace", o.trace,
                      "Mooncake JSONL or Azure CSV; default: a built-in workload");
  command->add_option("--limit", o.limit, "only the first rows (built-in: how many)")
      ->check(CLI::Range(std::uint64_t{1}, kRowsMax));
  command->add_option("--time-scale", o.client.time_scale, "arrivals are this much faster")
      ->check(number_between(1e-3, 1e6))
      ->capture_default_str();
  command->add_option("--prefill", o.fleet.prefill, "prefill workers")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--decode", o.fleet.decode, "decode workers")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--prefill-tp", o.fleet.prefill_tp, "tensor parallel ranks of each prefill")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--decode-tp", o.fleet.decode_tp, "tensor parallel ranks of each decode")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--prefill-pp", o.fleet.prefill_pp, "pipeline stages of each prefill")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--decode-pp", o.fleet.decode_pp, "pipeline stages of each decode")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--model", o.fleet.model, "KV geometry: " + model_names())
      ->capture_default_str();
  command->add_option("--transport", o.fleet.transport, "fail rather than use another");
  command->add_option("--mode", o.fleet.mode, "push, pull or best")
      ->check(CLI::IsMember({"push", "pull", "best"}))
      ->capture_default_str();
  command->add_option("--policy", o.fleet.policy, "of the router")->capture_default_str();
  command->add_option("--page-tokens", o.fleet.page_tokens, "tokens of a page")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--pool-bytes", o.fleet.pool_bytes,
                   "KV memory of each worker; default: by the trace")
      ->check(CLI::Range(std::uint64_t{1} << 20, std::uint64_t{1} << 44));
  command->add_option("--inflight", o.client.inflight_max, "requests in flight; later ones queue")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--seed", o.workload.seed, "of the built-in workload")->capture_default_str();
  command->add_flag("--damage-received", o.fleet.damage_received,
                    "a control: one bit of each handoff is flipped at decode; must be noticed");
  command->add_flag("--json", o.json, "the last line is one JSON object");
  command->add_option("--html", o.html, "write a page with plots");
  // Of the workers: what decides how bytes move. (A trace file or a listener has one owner.)
  std::vector<Setting> rows = worker::own_settings();
  std::erase_if(rows, [](const Setting& row) {
    return row.name == "advertise" || row.name == "require" || row.name == "listen" ||
           row.name.starts_with("trace.") || row.name.starts_with("testing.");
  });
  add_setting_flags(*command, rows, "", o.fleet.settings);
  command->footer(
      "Examples:\n"
      "  kvlane replay\n"
      "  kvlane replay --trace conversation_trace.jsonl --limit 300 --time-scale 4 --html "
      "replay.html\n"
      "  kvlane replay --transport tcp --prefill-tp 4 --decode-tp 2 --json\n"
      "  kvlane replay --transport tcp --tcp.lanes 4 --handoff.crc all\n"
      "Exit status 1: a wrong page, or a request that failed or did not end.");
  command->callback([options, &program] { run(*options, program); });
}

}  // namespace kvl::tools
