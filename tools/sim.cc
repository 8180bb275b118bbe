// kvlane sim: seeded runs of a simulated cluster; a violation prints its seed and a smaller run.
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>

#include "kvl/log.h"
#include "tools/program.h"
#include "tools/sim/campaign.h"
#include "tools/sim/run.h"

namespace kvl::tools {
namespace {

constexpr int kShrinkTries = 400;

struct Options {
  simulation::RunOptions run;
  std::uint64_t runs = 1;
  unsigned threads = std::max(1U, std::thread::hardware_concurrency());
  std::string world = "serving";
  std::string keep_requests, keep_faults;
  std::uint32_t prefills = 0, decodes = 0, prefill_tp = 0, decode_tp = 0, devices = 0;
  bool no_faults = false, no_noise = false, no_shrink = false, json = false;
};

// "none" or numbers with commas. "": everything.
std::optional<std::set<std::uint32_t>> numbers(const std::string& text) {
  if (text.empty()) return {};
  std::set<std::uint32_t> all;
  if (text == "none") return all;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    std::uint32_t number = 0;
    const auto [after, error] = std::from_chars(at, end, number);
    if (error != std::errc{} || (after < end && *after != ',')) {
      throw CLI::ValidationError("--keep", "'" + text + "' is not none or numbers with commas");
    }
    all.insert(number);
    at = after + 1;
  }
  return all;
}

simulation::RunOptions run_options(const Options& options) {
  simulation::RunOptions run = options.run;
  run.world = options.world == "engines" ? simulation::World::engines : simulation::World::serving;
  run.faults = !options.no_faults;
  run.noise = !options.no_noise;
  const auto given = [](std::uint32_t value) {
    return value == 0 ? std::optional<std::uint32_t>{} : value;
  };
  run.prefills = given(options.prefills);
  run.decodes = given(options.decodes);
  run.prefill_tp = given(options.prefill_tp);
  run.decode_tp = given(options.decode_tp);
  run.devices = given(options.devices);
  run.keep_requests = numbers(options.keep_requests);
  run.keep_faults = numbers(options.keep_faults);
  return run;
}

// A line on a terminal that is written over.
class Progress {
 public:
  explicit Progress(std::uint64_t runs) : runs_(runs), shown_(runs > 1 && ::isatty(2) == 1) {}
  ~Progress() {
    if (shown_) std::fprintf(stderr, "\r\033[K");
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show(const simulation::Totals& totals) {
    if (!shown_ || totals.runs * 200 / runs_ == last_) return;
    last_ = totals.runs * 200 / runs_;
    constexpr int kWidth = 40;
    const auto filled = static_cast<int>(totals.runs * kWidth / runs_);
    std::fprintf(
        stderr, "\r[%-*.*s] %llu of %llu runs, %llu handoffs", kWidth, filled,
        "########################################", static_cast<unsigned long long>(totals.runs),
        static_cast<unsigned long long>(runs_), static_cast<unsigned long long>(totals.requests));
  }

 private:
  const std::uint64_t runs_;
  const bool shown_;
  std::uint64_t last_ = UINT64_MAX;
};

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

void print_json(const simulation::Totals& t, double seconds, const simulation::Failure* small) {
  const auto u = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
  std::printf("{\"runs\":%llu,\"requests\":%llu,\"done\":%llu,\"failed\":%llu,\"refused\":%llu,",
              u(t.runs), u(t.requests), u(t.done), u(t.failed), u(t.refused));
  std::printf("\"quarantined\":%llu,\"faults\":%llu,\"crashes\":%llu,\"steps\":%llu,",
              u(t.quarantined), u(t.faults), u(t.crashes), u(t.steps));
  std::printf("\"virtual_seconds\":%.3f,\"seconds\":%.3f,\"digest\":\"%016llx\"",
              static_cast<double>(t.virtual_ns) / 1e9, seconds, u(t.digest));
  if (t.failure) {
    std::printf(",\"violation\":{\"seed\":%llu,\"what\":%s,\"command\":%s",
                u(t.failure->options.seed), quoted(t.failure->report.violation).c_str(),
                quoted(command_of(t.failure->options)).c_str());
    if (small != nullptr) {
      std::printf(",\"smaller\":%s", quoted(command_of(small->options)).c_str());
    }
    std::printf("}");
  }
  std::printf("}\n");
}

void print_text(const simulation::Totals& t, const simulation::RunOptions& run, double seconds) {
  const auto u = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
  std::printf("%llu %s (seeds %llu to %llu): %llu %s, %llu done, %llu failed with a reason",
              u(t.runs), t.runs == 1 ? "run" : "runs", u(run.seed), u(run.seed + t.runs - 1),
              u(t.requests), run.world == simulation::World::serving ? "handoffs" : "transfers",
              u(t.done), u(t.failed));
  std::printf(
      " (%llu with pages in quarantine for a while), %llu refused; %llu faults, %llu crashes\n",
      u(t.quarantined), u(t.refused), u(t.faults), u(t.crashes));
  std::printf("%.1f s of virtual time, %llu steps, digest %016llx; %.1f s, %.0f a second\n",
              static_cast<double>(t.virtual_ns) / 1e9, u(t.steps), u(t.digest), seconds,
              static_cast<double>(t.requests) / std::max(seconds, 1e-9));
}

void simulate(const Options& options, Program& program) {
  const simulation::RunOptions run = run_options(options);
  const auto begin = std::chrono::steady_clock::now();
  simulation::Totals totals;
  if (run.trace || run.trace_packets) {
    simulation::RunReport report = simulation::run(run);
    for (const std::string& line : report.trace) std::printf("%s\n", line.c_str());
    totals = simulation::run_many(run, 1, 1, [](const simulation::Totals&) {});
  } else {
    Progress progress(options.runs);
    totals = simulation::run_many(run, options.runs, options.threads,
                                  [&](const simulation::Totals& t) { progress.show(t); });
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  std::optional<simulation::Failure> small;
  if (totals.failure && !options.no_shrink && !run.trace && !run.trace_packets) {
    small = simulation::shrink(*totals.failure, kShrinkTries);
  }
  if (totals.failure) program.exit_status = 1;
  if (options.json) return print_json(totals, took.count(), small ? &*small : nullptr);
  if (!totals.failure) return print_text(totals, run, took.count());
  std::printf("seed %llu: VIOLATION %s\n",
              static_cast<unsigned long long>(totals.failure->options.seed),
              totals.failure->report.violation.c_str());
  std::printf("again:   %s --trace\n", command_of(totals.failure->options).c_str());
  if (!small) return;
  std::printf("smaller: %s --trace\n         %s\n", command_of(small->options).c_str(),
              small->report.violation.c_str());
}

}  // namespace

void add_sim(CLI::App& app, Program& program) {
  CLI::App* const command =
      app.add_subcommand("sim", "simulate a cluster in virtual time, with faults and checks");
  const auto options = std::make_shared<Options>();
  command->add_option("--seed", options->run.seed, "first seed")->capture_default_str();
  command->add_option("--runs", options->runs, "consecutive seeds")
      ->check(CLI::Range(1, 100'000'000));
  command->add_option("--threads", options->threads, "runs at a time")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->add_option("--world", options->world, "serving (handoffs) or engines (transfers)")
      ->check(CLI::IsMember({"serving", "engines"}))
      ->capture_default_str();
  command->add_option("--requests", options->run.requests, "serving: requests in a run")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--prefills", options->prefills, "serving: prefill instances")
      ->check(CLI::Range(1, 8));
  command->add_option("--decodes", options->decodes, "serving: decode instances")
      ->check(CLI::Range(1, 8));
  command->add_option("--prefill-tp", options->prefill_tp, "serving: ranks of a prefill instance")
      ->check(CLI::IsMember({1, 2, 4}));
  command->add_option("--decode-tp", options->decode_tp, "serving: ranks of a decode instance")
      ->check(CLI::IsMember({1, 2, 4}));
  command->add_option("--devices", options->devices, "rails of an engine")->check(CLI::Range(1, 8));
  command->add_option("--keep-requests", options->keep_requests,
                      "serving: only these requests: none, or numbers with commas");
  command->add_option("--keep-faults", options->keep_faults,
                      "serving: only these faults: none, or numbers with commas");
  command->add_option("--engines", options->run.engines, "engines: how many")
      ->check(CLI::Range(2, 32));
  command->add_option("--transfers", options->run.transfers, "engines: transfers in a run");
  command->add_flag("--no-faults", options->no_faults, "a healthy cluster: everything must arrive");
  command->add_flag("--no-noise", options->no_noise, "the network loses and delays nothing");
  command->add_flag("--no-shrink", options->no_shrink, "do not look for a smaller failing run");
  command->add_flag("--trace", options->run.trace, "print what processes and faults do");
  command->add_flag("--trace-packets", options->run.trace_packets, "print packets as well");
  command->add_flag("--json", options->json, "one JSON object");
  command->footer(
      "Examples:\n  kvlane sim --seed 1 --runs 10000\n  kvlane sim --seed 17 --trace\n"
      "  kvlane sim --seed 17 --keep-requests 3,9 --keep-faults 2 --trace\n"
      "Exit status 1: a check failed; the seed and a smaller run are printed as commands.");
  command->callback([options, &app, &program] {
    // Failing handoffs are what this is about; their log lines would drown the result.
    if (app.count("--log") == 0) set_log_levels("off");
    simulate(*options, program);
  });
}

}  // namespace kvl::tools
