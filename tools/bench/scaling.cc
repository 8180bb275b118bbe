// The curve: what a transfer costs when there are more sessions, and when it has more pages.
#include <algorithm>

#include "bench/support/stats.h"
#include "tools/bench/fleet.h"
#include "tools/bench/modes.h"

namespace kvl::bench {
namespace {

constexpr std::size_t kSessions[] = {1, 10, 100, 1000};
constexpr std::uint64_t kPages[] = {1'000, 10'000, 100'000, 1'000'000};
constexpr std::uint64_t kSmallPageBytes = 512;  // a million of them fit
constexpr std::uint64_t kFilesPerPeer = 12;     // a fleet's engine, with room

int sessions_curve(const Bench& bench, Report& report) {
  report.section("cost against sessions: 16 pages of 4 KiB to a random one of them",
                 {{"transport", "transport"},
                  {"sessions", "sessions"},
                  {"connect_ms", "connect_ms"},
                  {"rss_bytes_per_peer", "bytes/peer"},
                  {"idle_cpu_percent", "idle_cpu_%"},
                  {"p50_us", "p50_us"},
                  {"p99_us", "p99_us"}});
  const std::uint64_t files = raise_file_limit();
  for (const std::size_t sessions : kSessions) {
    if (sessions * kFilesPerPeer > files) {
      report.note("      skipped: " + std::to_string(sessions) + " sessions need more than " +
                  std::to_string(files) + " open files (ulimit -n)");
      continue;
    }
    bench.progress(std::to_string(sessions) + " sessions");
    std::string error;
    // Peers on one host, but each with connections of its own, as on many.
    auto flags = bench.engine_flags(
        bench.options.transport == "auto" ? "tcp" : bench.options.transport, &error);
    if (!flags.ok()) return fail(error);
    auto fleet = Fleet::open(bench, *flags, sessions, &error);
    if (!fleet.ok()) {
      bench.progress("");
      return fail(std::to_string(sessions) +
                  " sessions: " + (error.empty() ? fleet.status().to_string() : error));
    }
    std::vector<double> samples;
    const Status status = (*fleet)->transfers(bench.options.seconds, samples);
    bench.progress("");
    if (!status.ok()) return fail(status.to_string());
    std::sort(samples.begin(), samples.end());
    Row row;
    row.set("figure", "sessions")
        .set("transport",
             bench.options.transport == "auto" ? std::string("tcp") : bench.options.transport);
    row.set("sessions", static_cast<std::int64_t>(sessions));
    row.set("connect_ms", (*fleet)->connect_ms());
    row.set("rss_bytes_per_peer", (*fleet)->rss_bytes_per_peer());
    row.set("idle_cpu_percent", (*fleet)->idle_cpu_percent());
    row.set("p50_us", percentile_sorted(samples, 0.5));
    row.set("p99_us", percentile_sorted(samples, 0.99));
    report.add(row);
    if (interrupted()) return fail("interrupted");
  }
  return 0;
}

int pages_curve(const Bench& bench, Report& report) {
  report.section("\ncost against pages of 512 B in one transfer",
                 {{"transport", "transport"},
                  {"pages", "   pages"},
                  {"p50_us", "p50_us"},
                  {"us_per_page", "us/page"},
                  {"cpu_us_per_page", "cpu_us/page"},
                  {"gb_per_s", "GB/s"},
                  {"wrong_bytes", "wrong"}});
  Bench one = bench;
  one.options.baselines = "none";
  for (const std::uint64_t pages : kPages) {
    if (interrupted()) return fail("interrupted");
    bench.progress(std::to_string(pages) + " pages");
    WorkloadSpec spec;
    spec.pages = pages;
    spec.page_bytes = kSmallPageBytes;
    spec.arena_bytes = 0;
    Row row;
    row.set("figure", "pages");
    std::string error;
    const Status status = measure_row(one, spec, Direction::write, row, &error);
    bench.progress("");
    if (!status.ok()) return fail(error);
    row.set("us_per_page", row.number("p50_us") / static_cast<double>(pages));
    // What a page costs both processes, also where others take the machine's time.
    row.set("cpu_us_per_page",
            row.number("cpu_s_per_gb") * static_cast<double>(kSmallPageBytes) / 1e3);
    report.add(row);
    if (row.number("wrong_bytes") > 0) return fail("wrong bytes: " + row.text("wrong"));
  }
  return 0;
}

}  // namespace

int run_scaling(const Bench& bench) {
  Report report(stdout, bench.options.format, {});
  const int sessions = sessions_curve(bench, report);
  const int pages = sessions == 0 || !interrupted() ? pages_curve(bench, report) : 1;
  return std::max(sessions, pages);
}

}  // namespace kvl::bench
