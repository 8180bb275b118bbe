// The table of figures that the project has set itself, measured with one command.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "bench/support/stats.h"
#include "tools/bench/latency.h"
#include "tools/bench/modes.h"

namespace kvl::bench {
namespace {

constexpr std::uint64_t kSizes[] = {4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20};
constexpr int kSessions = 7;  // fresh pairs for the session figure

struct Suite {
  const Bench& bench;
  Report& report;
  std::vector<Row> summary;
  bool failed = false;

  // One line of the closing table: at least or at most a bound.
  void judge(const std::string& figure, double value, double bound, bool at_least) {
    Row row;
    row.set("figure", figure).set("value", value);
    row.set("bound", std::string(at_least ? ">= " : "<= ") + json(Value(bound)));
    row.set("reached",
            std::isfinite(value) ? Value(at_least ? value >= bound : value <= bound) : Value());
    summary.push_back(std::move(row));
  }
  void failure(const std::string& what, const std::string& error) {
    failed = true;
    if (!interrupted()) fail(what + ": " + error);
  }

  void transports();
  void sizes(const std::string& transport, bool foreign);
  void strided(const std::string& transport);
  void latency(const std::string& transport);
  void registration();
  void session(const std::string& transport);
};

// The worst of a column over rows.
double least(const std::vector<Row>& rows, const char* name) {
  double value = INFINITY;
  for (const Row& row : rows) value = std::min(value, row.number(name));
  return rows.empty() ? NAN : value;
}

void Suite::sizes(const std::string& transport, bool foreign) {
  const std::string memory = foreign ? ", foreign memory" : "";
  report.section("\n" + transport + memory + ": 1,024 scattered pages per transfer", row_columns());
  Bench one = bench;
  one.options.transport = transport;
  one.options.foreign = foreign;
  std::vector<Row> rows;
  for (const Direction direction : {Direction::write, Direction::read}) {
    for (const std::uint64_t page_bytes : kSizes) {
      if (interrupted()) return;
      bench.progress(transport + memory + " " + std::string(to_string(direction)) + " " +
                     bytes_text(page_bytes));
      WorkloadSpec spec;
      spec.page_bytes = page_bytes;
      Row row;
      row.set("figure", "sizes");
      std::string error;
      const Status status = measure_row(one, spec, direction, row, &error);
      bench.progress("");
      if (!status.ok()) return failure(transport, error);
      if (row.number("wrong_bytes") > 0) failure(transport, row.text("wrong"));
      report.add(row);
      if (transport == "tcp" && page_bytes == 64 << 10) {
        judge(
            "tcp " + std::string(to_string(direction)) + " 64 KiB: CPU per GB against raw sockets",
            row.number("ratio_socket_cpu"), 1.1, false);
      }
      rows.push_back(std::move(row));
    }
  }
  if (transport == "tcp") {
    judge("tcp, least of all sizes: rate against raw sockets", least(rows, "ratio_socket"), 0.9,
          true);
  } else if (foreign) {
    judge("shm, foreign memory, least of all sizes: rate against process_vm",
          least(rows, "ratio_process_vm"), 0.9, true);
  } else {
    judge("shm, least of all sizes: rate against memcpy", least(rows, "ratio_memcpy"), 0.9, true);
  }
}

// Two beds need two sessions: both with the same serving process, measured in turns.
void Suite::strided(const std::string& transport) {
  report.section("\n" + transport + ": 512 runs of 128 x 16 KiB against 512 pages of 2 MiB",
                 {{"transport", "transport"},
                  {"op", "op"},
                  {"gb_per_s", "strided"},
                  {"contiguous_gb_per_s", "contiguous"},
                  {"ratio", "ratio"}});
  WorkloadSpec pieces, whole;
  pieces.pages = 512ull * 128;
  pieces.page_bytes = 16 << 10;
  pieces.run_pieces = 128;
  pieces.local_stride = pieces.remote_stride = 32 << 10;
  pieces.arena_bytes = whole.arena_bytes = 0;
  whole.pages = 512;
  whole.page_bytes = 2 << 20;
  for (const Direction direction : {Direction::write, Direction::read}) {
    if (interrupted()) return;
    bench.progress(transport + " strided " + std::string(to_string(direction)));
    std::string error;
    Ratio ratio;
    Row row;
    const auto work = [&]() -> Status {
      auto flags = bench.load_flags(transport, &error);
      if (!flags.ok()) return flags.status();
      auto pair = bench.start_pair(*flags, &error);
      if (!pair.ok()) return pair.status();
      flags->emplace_back("listen", "127.0.0.1:0");
      flags->emplace_back("peer_timeout_ms", "20000");
      const auto settings = bench.settings(*flags);
      if (!settings.ok()) return settings.status();
      const auto peer = pair->session->describe();
      if (!peer.ok()) return peer.status();
      auto other = Session::open(*settings,
                                 {.address = peer->address,
                                  .child = pair->child.get(),
                                  .timeout_ms = bench.options.timeout_ms},
                                 &error);
      if (!other.ok()) return other.status();
      auto first = TestBed::open(*pair->session, pieces, false);
      auto second = TestBed::open(**other, whole, false);
      if (!first.ok() || !second.ok()) return first.ok() ? second.status() : first.status();
      std::uint64_t wrong = 0;
      KVL_TRY(verify_bed(**first, direction, true, false, wrong, error));
      KVL_TRY(verify_bed(**second, direction, true, false, wrong, error));
      if (wrong > 0) return {Code::corrupt, "wrong bytes"};
      std::vector<std::unique_ptr<Contender>> contenders;
      contenders.push_back(make_engine_contender(**first, {direction}));
      contenders.push_back(make_engine_contender(**second, {direction}));
      const auto series = interleave(*pair->session, contenders, {bench.options.seconds, 5, {}});
      if (!series.ok()) return series.status();
      ratio = paired_ratio((*series)[0].gb_per_s, (*series)[1].gb_per_s);
      row.set("figure", "strided").set("transport", pair->session->transport());
      row.set("op", std::string(to_string(direction)));
      row.set("gb_per_s", (*series)[0].rate()).set("contiguous_gb_per_s", (*series)[1].rate());
      row.set("ratio", ratio.value).set("ratio_low", ratio.low).set("ratio_high", ratio.high);
      return {};
    };
    const Status status = work();
    bench.progress("");
    if (!status.ok()) return failure("strided " + transport, error + " " + status.to_string());
    report.add(row);
    judge(transport + " " + std::string(to_string(direction)) + ": strided against contiguous",
          ratio.value, 0.8, true);
  }
}

void Suite::latency(const std::string& transport) {
  report.section("\n" + transport + ": 4 KiB write, note, answer (microseconds)",
                 latency_columns());
  for (const std::string_view progress : {"caller", "thread"}) {
    if (interrupted()) return;
    bench.progress(transport + " latency");
    Row row;
    row.set("figure", "latency");
    std::string error;
    const Status status = measure_latency(bench, transport, progress, row, &error);
    bench.progress("");
    if (!status.ok()) return failure("latency " + transport, error);
    report.add(row);
    if (progress != "caller") continue;
    if (transport == "tcp") {
      judge("tcp, caller: p50 against a raw socket", row.number("ratio_socket"), 1.5, false);
    } else {
      judge("shm, caller: p50 against shared memory", row.number("ratio_futex"), 2, false);
    }
  }
}

void Suite::registration() {
  constexpr std::uint64_t kBytes = std::uint64_t{4} << 30;
  report.section(
      "\nregister 4 GiB of host memory (milliseconds)",
      {{"memory", "memory"}, {"register_ms", "register"}, {"deregister_ms", "deregister"}});
  std::string error;
  const auto settings = bench.settings(bench.options.flags);
  if (!settings.ok()) return;
  auto engine = Engine::open(*settings, &error);
  if (!engine.ok()) return failure("register", error);
  for (const bool foreign : {false, true}) {
    auto arena = Arena::open(kBytes, foreign);
    if (!arena.ok()) return failure("register", arena.status().to_string());
    const SteadyClock clock;
    const std::int64_t start_ns = clock.now_ns();
    const auto memory = (*engine)->register_memory((*arena)->memory());
    const std::int64_t middle_ns = clock.now_ns();
    if (!memory.ok()) return failure("register", memory.status().to_string());
    const Status gone = (*engine)->deregister_memory(*memory);
    if (!gone.ok()) return failure("deregister", gone.to_string());
    Row row;
    row.set("figure", "register").set("memory", foreign ? "foreign" : "shared");
    const double register_ms = static_cast<double>(middle_ns - start_ns) / 1e6;
    row.set("register_ms", register_ms);
    row.set("deregister_ms", static_cast<double>(clock.now_ns() - middle_ns) / 1e6);
    report.add(row);
    judge(std::string("register 4 GiB, ") + (foreign ? "foreign" : "shared") + ", ms", register_ms,
          5, false);
  }
}

void Suite::session(const std::string& transport) {
  report.section("\n" + transport + ": a session between fresh processes (milliseconds, medians)",
                 {{"transport", "transport"},
                  {"spawn_ms", "spawn"},
                  {"open_ms", "open"},
                  {"connect_ms", "connect"},
                  {"first_ms", "memory+write"},
                  {"session_ms", "session"}});
  std::vector<double> spawn, open, connect, first, all;
  for (int i = 0; i < kSessions && !interrupted(); ++i) {
    std::string error;
    const auto flags = bench.engine_flags(transport, &error);
    if (!flags.ok()) return failure("session", error);
    auto pair = bench.start_pair(*flags, &error);
    if (!pair.ok()) return failure("session " + transport, error);
    WorkloadSpec spec;
    spec.pages = 1;
    spec.arena_bytes = 0;
    const SteadyClock clock;
    const std::int64_t start_ns = clock.now_ns();
    auto bed = TestBed::open(*pair->session, spec, false);
    if (!bed.ok()) return failure("session", pair->session->error());
    if (!(*bed)->start(Direction::write, 0, 0, true).ok() || !pair->session->ended().ok()) {
      return failure("session", pair->session->error());
    }
    first.push_back(static_cast<double>(clock.now_ns() - start_ns) / 1e6);
    spawn.push_back(pair->spawn_ms);
    open.push_back(pair->session->open_ms());
    connect.push_back(pair->session->connect_ms());
    all.push_back(connect.back() + first.back());
  }
  Row row;
  row.set("figure", "session").set("transport", transport);
  row.set("spawn_ms", median(spawn)).set("open_ms", median(open));
  row.set("connect_ms", median(connect)).set("first_ms", median(first));
  row.set("session_ms", median(all));
  report.add(row);
  judge(transport + ": connect to first notified write, ms", median(all), 10, false);
}

}  // namespace

int run_figures(const Bench& bench) {
  Report report(stdout, bench.options.format, row_columns());
  Suite suite{bench, report, {}};
  for (const std::string transport : {"tcp", "shm"}) {
    suite.sizes(transport, false);
    if (transport == "shm") suite.sizes(transport, true);
    suite.latency(transport);
    suite.strided(transport);
    suite.session(transport);
  }
  suite.registration();
  report.section(
      "\nfigures",
      {{"reached", "reached"}, {"value", "value"}, {"bound", "bound"}, {"figure", "  figure"}});
  for (const Row& row : suite.summary) report.add(row);
  if (interrupted()) return fail("interrupted");
  return suite.failed ? 1 : 0;
}

}  // namespace kvl::bench
