// kvlane sim: seeded runs of a simulated cluster; a violation prints its seed.
#include <cstdio>
#include <memory>

#include "tools/program.h"
#include "tools/sim/sim_run.h"

namespace kvl::tools {
namespace {

struct Options {
  simulation::RunOptions run;
  std::uint64_t runs = 1;
  bool no_faults = false;
};

void simulate(const Options& options, Program& program) {
  std::uint64_t done = 0, failed = 0, quarantined = 0, crashes = 0;
  for (std::uint64_t i = 0; i < options.runs; ++i) {
    simulation::RunOptions run = options.run;
    run.seed += i;
    run.faults = !options.no_faults;
    const simulation::RunReport report = simulation::run(run);
    for (const std::string& line : report.trace) std::printf("%s\n", line.c_str());
    done += report.done;
    failed += report.failed;
    quarantined += report.quarantined;
    crashes += report.crashes;
    if (!report.ok) {
      std::printf("seed %llu: VIOLATION %s\n", static_cast<unsigned long long>(run.seed),
                  report.violation.c_str());
      std::printf("replay it with: kvlane sim --seed %llu --trace\n",
                  static_cast<unsigned long long>(run.seed));
      program.exit_status = 1;
      return;
    }
    if (options.runs == 1) {
      std::printf("seed %llu: ok, %llu steps, %.1f ms of virtual time, digest %016llx\n",
                  static_cast<unsigned long long>(run.seed),
                  static_cast<unsigned long long>(report.steps),
                  static_cast<double>(report.virtual_ns) / 1e6,
                  static_cast<unsigned long long>(report.digest));
    } else if (i % 50 == 49) {
      std::fprintf(stderr, "\r%llu of %llu runs", static_cast<unsigned long long>(i) + 1,
                   static_cast<unsigned long long>(options.runs));
    }
  }
  if (options.runs > 1) std::fprintf(stderr, "\r");
  std::printf(
      "%llu runs ok: %llu transfers done, %llu failed typed (%llu quarantined), %llu crashes\n",
      static_cast<unsigned long long>(options.runs), static_cast<unsigned long long>(done),
      static_cast<unsigned long long>(failed), static_cast<unsigned long long>(quarantined),
      static_cast<unsigned long long>(crashes));
}

}  // namespace

void add_sim(CLI::App& app, Program& program) {
  CLI::App* const command =
      app.add_subcommand("sim", "simulate a cluster in virtual time, with faults and checks");
  const auto options = std::make_shared<Options>();
  command->add_option("--seed", options->run.seed, "first seed")->capture_default_str();
  command->add_option("--runs", options->runs, "consecutive seeds")->check(CLI::PositiveNumber);
  command->add_option("--engines", options->run.engines, "engines")->check(CLI::Range(2, 32));
  command->add_option("--devices", options->run.devices, "rails each")->check(CLI::Range(1, 8));
  command->add_option("--transfers", options->run.transfers, "transfers in a run");
  command->add_flag("--no-faults", options->no_faults, "a healthy network");
  command->add_flag("--trace", options->run.trace, "print every event");
  command->footer(
      "Examples:\n  kvlane sim --seed 1 --runs 200\n  kvlane sim --seed 17 --trace\n"
      "Exit status 1: a check failed; the seed is printed.");
  command->callback([options, &program] { simulate(*options, program); });
}

}  // namespace kvl::tools
