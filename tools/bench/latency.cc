// Latency mode.
#include "tools/bench/latency.h"

#include <algorithm>
#include <array>

#include "bench/support/futex_pingpong.h"
#include "bench/support/stats.h"
#include "tools/bench/modes.h"
#include "tools/bench/target.h"

namespace kvl::bench {
namespace {

constexpr std::uint32_t kPayloadBytes = 4096;
constexpr std::uint32_t kAnswerBytes = 8;
constexpr std::size_t kTurns = 200;  // of one contender before the next
constexpr std::size_t kWarmUpTurns = 300;

using Samples = std::vector<double>;  // microseconds

class Asker {
 public:
  Asker(const Bench& bench, Session& session, TestBed& bed)
      : bench_(bench), session_(session), bed_(bed) {}

  Status engine_turns(std::size_t turns, Samples& samples) {
    const SteadyClock clock;
    for (std::size_t i = 0; i < turns; ++i) {
      const std::int64_t start_ns = clock.now_ns();
      KVL_TRY(bed_.ping(i));
      KVL_TRY(session_.note());
      samples.push_back(static_cast<double>(clock.now_ns() - start_ns) / 1000);
      // The write's own event may come before or after the answer; it is outside of the time.
      if (const auto event = session_.ended(); !event.ok()) return event.status();
    }
    return {};
  }

  Status open_socket(RawSocketOptions options) {
    options.connections = options.threads = 1;
    options.spin = bench_.options.spin_us > 0;
    const auto answer = session_.ask(Message("raw")
                                         .set("connections", std::uint64_t{1})
                                         .set("congestion", options.congestion)
                                         .set("spin", std::uint64_t{options.spin}));
    if (!answer.ok()) return answer.status();
    auto client = RawSocketClient::open(options, bed_.local(), "127.0.0.1",
                                        static_cast<std::uint16_t>(answer->number("port")));
    if (!client.ok()) return client.status();
    socket_ = std::move(*client);
    return {};
  }
  Status socket_turns(std::size_t turns, Samples& samples) {
    if (socket_ == nullptr) return {};
    const auto run = socket_->ping_pong(turns, kPayloadBytes, kAnswerBytes);
    if (!run.ok()) return run.status();
    samples.insert(samples.end(), run->batch_us.begin(), run->batch_us.end());
    return {};
  }

  Status open_futex() {
    auto side = FutexPingPong::create();
    if (!side.ok()) return side.status();
    futex_ = std::move(*side);
    return session_
        .ask(Message("futex")
                 .set("path", futex_->path())
                 .set("spin_us", static_cast<std::uint64_t>(bench_.options.spin_us)))
        .status();
  }
  Status futex_turns(std::size_t turns, Samples& samples) {
    if (futex_ == nullptr) return {};
    const auto times = futex_->ask(turns, kPayloadBytes, bench_.options.spin_us, 5000);
    if (!times.ok()) return times.status();
    samples.insert(samples.end(), times->begin(), times->end());
    return {};
  }
  ~Asker() {
    if (futex_ != nullptr) futex_->stop();
  }

 private:
  const Bench& bench_;
  Session& session_;
  TestBed& bed_;
  std::unique_ptr<RawSocketClient> socket_;
  std::unique_ptr<FutexPingPong> futex_;
};

Status measure(const Bench& bench, Session& session, const RawSocketOptions& raw, TestBed& bed,
               std::array<Samples, 3>& all) {
  Asker asker(bench, session, bed);
  if (bench.options.baseline("socket")) KVL_TRY(asker.open_socket(raw));
  if (bench.options.baseline("futex")) KVL_TRY(asker.open_futex());
  session.spin(bench.options.spin_us);
  KVL_TRY(session.ask(Message("spin").set("us", static_cast<std::uint64_t>(bench.options.spin_us)))
              .status());
  const SteadyClock clock;
  const std::int64_t end_ns =
      clock.now_ns() + static_cast<std::int64_t>(bench.options.seconds * 1e9);
  for (bool warm = false; clock.now_ns() < end_ns || all[0].empty(); warm = true) {
    if (interrupted()) return session.fail(Code::aborted, "interrupted");
    const std::size_t turns = warm ? kTurns : kWarmUpTurns;
    KVL_TRY(asker.engine_turns(turns, all[0]));
    KVL_TRY(asker.socket_turns(turns, all[1]));
    KVL_TRY(asker.futex_turns(turns, all[2]));
    if (!warm) {
      for (Samples& samples : all) samples.clear();
    }
  }
  return {};
}

}  // namespace

Status measure_latency(const Bench& bench, std::string_view transport, std::string_view progress,
                       Row& row, std::string* error) {
  auto flags = bench.engine_flags(transport, error);
  if (!flags.ok()) return flags.status();
  std::erase_if(*flags, [](const auto& flag) { return flag.first == "progress"; });
  flags->emplace_back("progress", std::string(progress));
  const auto settings = bench.settings(*flags);
  if (!settings.ok()) return settings.status();
  auto pair = bench.start_pair(*flags, error);
  if (!pair.ok()) return pair.status();
  Session& session = *pair->session;
  std::array<Samples, 3> all;
  const auto work = [&]() -> Status {
    WorkloadSpec spec;
    spec.pages = 1;
    spec.page_bytes = kPayloadBytes;
    spec.arena_bytes = 1 << 20;
    auto bed = TestBed::open(session, spec, bench.options.foreign);
    if (!bed.ok()) return bed.status();
    return measure(bench, session, raw_options_for(*settings), **bed, all);
  };
  if (const Status status = work(); !status.ok()) {
    *error = session.error().empty() ? status.to_string() : session.error();
    return status;
  }
  row.set("transport", session.transport()).set("op", "write+note+answer");
  row.set("progress", std::string(progress)).set("page_bytes", std::int64_t{kPayloadBytes});
  row.set("spin_us", bench.options.spin_us);
  for (Samples& samples : all) std::sort(samples.begin(), samples.end());
  const auto set = [&](const std::string& prefix, const Samples& samples) {
    for (const auto& [name, q] :
         {std::pair{"p50_us", 0.5}, {"p90_us", 0.9}, {"p99_us", 0.99}, {"p999_us", 0.999}}) {
      row.set(prefix + name, percentile_sorted(samples, q));
    }
  };
  set("", all[0]);
  set("socket_", all[1]);
  set("futex_", all[2]);
  row.set("ratio_socket", row.number("p50_us") / row.number("socket_p50_us"));
  row.set("ratio_futex", row.number("p50_us") / row.number("futex_p50_us"));
  row.set("transfers", static_cast<std::int64_t>(all[0].size()));
  return {};
}

std::vector<Column> latency_columns() {
  return {
      {"transport", "transport"},    {"progress", "progress"},      {"spin_us", "spin_us"},
      {"p50_us", "p50_us"},          {"p90_us", "p90_us"},          {"p99_us", "p99_us"},
      {"p999_us", "p99.9_us"},       {"socket_p50_us", "sock_p50"}, {"socket_p99_us", "sock_p99"},
      {"futex_p50_us", "futex_p50"}, {"futex_p99_us", "futex_p99"}, {"ratio_socket", "/socket"},
      {"ratio_futex", "/futex"}};
}

int run_latency(const Bench& bench) {
  Report report(stdout, bench.options.format, latency_columns());
  std::vector<std::string> progresses{"caller", "thread"};
  for (const auto& [name, value] : bench.options.flags) {
    if (name == "progress") progresses = {value};
  }
  for (const std::string& progress : progresses) {
    bench.progress("latency " + bench.options.transport + " progress=" + progress);
    Row row;
    std::string error;
    const Status status = measure_latency(bench, bench.options.transport, progress, row, &error);
    bench.progress("");
    if (!status.ok()) return fail(error);
    report.add(row);
  }
  return 0;
}

}  // namespace kvl::bench
