// The plain modes: rows of sizes, and serving.
#include "tools/bench/modes.h"

#include <cstdio>

#include "tools/bench/fleet.h"
#include "tools/bench/target.h"

namespace kvl::bench {

int fail(const std::string& sentence) {
  if (!sentence.empty()) std::fprintf(stderr, "kvlane bench: %s\n", sentence.c_str());
  return 1;
}

int run_rows(const Bench& bench) {
  Report report(stdout, bench.options.format, row_columns());
  bool wrong = false;
  for (const std::uint64_t page_bytes : bench.options.page_bytes) {
    for (const Direction direction : bench.options.directions) {
      WorkloadSpec spec = bench.options.workload;
      spec.page_bytes = page_bytes;
      bench.progress(bench.options.transport + " " + std::string(to_string(direction)) + " " +
                     std::to_string(spec.pages) + " x " + bytes_text(page_bytes));
      Row row;
      std::string error;
      const Status status = measure_row(bench, spec, direction, row, &error);
      bench.progress("");
      if (!status.ok()) return fail(error);
      report.add(row);
      if (row.number("wrong_bytes") > 0) {
        wrong = true;
        fail("wrong bytes: " + row.text("wrong"));
      }
    }
  }
  return wrong ? 1 : 0;
}

int run_serve_fleet(const Bench& bench) {
  const auto settings = bench.settings(bench.options.flags);
  return settings.ok() ? serve_fleet(*settings, bench.options.serve_fleet) : 1;
}

int run_serve(const Bench& bench, bool child) {
  Flags flags = bench.options.flags;
  // For another host, unless an address says otherwise; then a secret is needed.
  const std::string& address_wanted = bench.options.serve_address;
  flags.emplace_back("listen", address_wanted.empty() ? "0.0.0.0:0" : address_wanted);
  const auto settings = bench.settings(flags);
  if (!settings.ok()) return 1;
  std::string error;
  auto engine = Engine::open(*settings, &error);
  if (!engine.ok()) return fail(error.empty() ? engine.status().to_string() : error);
  const std::string address = (*engine)->address();
  TargetOptions options;
  options.local = child;
  options.bytes_max = bench.options.serve_bytes_max;
  if (options.bytes_max == 0) options.bytes_max = available_memory_bytes() / (child ? 1 : 2);
  if (!child) options.raw_address = address.front() == '[' ? "::" : "0.0.0.0";
  // The first line of output is for programs: where to connect.
  std::printf("%s\n", address.c_str());
  std::fflush(stdout);
  if (!child)
    std::fprintf(stderr, "serving; on the other host: kvlane bench --peer %s\n", address.c_str());
  Target target(**engine, options);
  target.run(interrupted, child);
  return 0;
}

}  // namespace kvl::bench
