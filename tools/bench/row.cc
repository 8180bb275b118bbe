// Measuring one row.
#include "tools/bench/row.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "bench/support/stats.h"

namespace kvl::bench {
namespace {

constexpr std::uint64_t kQuickVerifyBytes = 64 << 20;
constexpr std::uint64_t kWarmUpBytes = std::uint64_t{1} << 30;
constexpr std::uint64_t kGuardGapBytes = 72;  // odd enough that a wrong multiple shows

double ms_since(std::int64_t start_ns) {
  return static_cast<double>(SteadyClock().now_ns() - start_ns) / 1e6;
}

Status move_once(TestBed& bed, Direction direction, std::size_t index, bool note) {
  KVL_TRY(bed.start(direction, index, 0, note));
  return bed.session().ended().status();
}

void set_ratio(Row& row, const std::string& name, const Series& ours, const Series& theirs) {
  const Ratio ratio = paired_ratio(ours.gb_per_s, theirs.gb_per_s);
  row.set(name, ratio.value).set(name + "_low", ratio.low).set(name + "_high", ratio.high);
}

const Series* find(const std::vector<Series>& all, std::string_view name) {
  for (const Series& series : all) {
    if (series.name == name) return &series;
  }
  return nullptr;
}

void set_results(Row& row, const WorkloadSpec& spec, const std::vector<Series>& all) {
  const Series& ours = all.front();
  row.set("gb_per_s", ours.rate());
  for (const auto& [name, q] :
       {std::pair{"p50_us", 0.5}, {"p90_us", 0.9}, {"p99_us", 0.99}, {"p999_us", 0.999}}) {
    row.set(name, ours.percentile_us(q));
  }
  row.set("mops_per_s", ours.rate() * 1e3 / static_cast<double>(spec.page_bytes));
  row.set("cpu_s_per_gb", ours.cpu_s_per_gb());
  for (const char* name : {"memcpy", "socket", "process_vm", "plain"}) {
    const std::string prefix(name);
    const Series* const theirs = find(all, name);
    const bool there = theirs != nullptr && theirs->measured();
    row.set(prefix + "_gb_per_s", there ? Value(theirs->rate()) : Value());
    row.set(prefix + "_cpu_s_per_gb", there ? Value(theirs->cpu_s_per_gb()) : Value());
    row.set(prefix + "_p50_us", there ? Value(theirs->percentile_us(0.5)) : Value());
    row.set("ratio_" + prefix, Value());
    if (there) set_ratio(row, "ratio_" + prefix, ours, *theirs);
  }
  const Series* const socket = find(all, "socket");
  row.set("ratio_socket_cpu", socket != nullptr && socket->cpu_seconds > 0
                                  ? Value(ours.cpu_s_per_gb() / socket->cpu_s_per_gb())
                                  : Value());
  row.set("transfers", static_cast<std::int64_t>(ours.transfer_us.size()));
  row.set("rounds", static_cast<std::int64_t>(ours.gb_per_s.size()));
  row.set("seconds", ours.seconds);
}

void set_shape(Row& row, const BenchOptions& options, const Settings& settings,
               const std::string& transport, const WorkloadSpec& spec, Direction direction,
               const std::string& congestion) {
  const bool tcp = transport.find("tcp") != std::string::npos;
  const auto count = [&](std::string_view name) {
    return static_cast<std::int64_t>(std::atoll(settings.value(name).text.c_str()));
  };
  row.set("transport", transport).set("op", std::string(to_string(direction)));
  row.set("page_bytes", static_cast<std::int64_t>(spec.page_bytes));
  row.set("pages", static_cast<std::int64_t>(spec.pages));
  row.set("lanes", tcp ? count("tcp.lanes") : std::int64_t{1});
  row.set("congestion", tcp ? Value(congestion) : Value("none"));
  row.set("rails", count("rails_per_device")).set("progress", settings.value("progress").text);
  row.set("memory", options.foreign ? "foreign" : "shared");
  row.set("contiguous", spec.contiguous);
  row.set("run_pieces", static_cast<std::int64_t>(spec.run_pieces));
  row.set("local_stride", static_cast<std::int64_t>(spec.local_stride));
  row.set("remote_stride", static_cast<std::int64_t>(spec.remote_stride));
  row.set("depth", std::int64_t{options.depth});
}

std::string host_of(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  return host;
}

bool given(const Flags& flags, std::string_view name) {
  return std::any_of(flags.begin(), flags.end(),
                     [&](const auto& flag) { return flag.first == name; });
}

}  // namespace

Result<Flags> Bench::engine_flags(std::string_view transport, std::string* error) const {
  Flags flags = options.flags;
  auto require = required_transport(transport, error);
  if (!require.ok()) return require.status();
  if (!require->empty()) flags.emplace_back("require", *require);
  return flags;
}

Result<Flags> Bench::load_flags(std::string_view transport, std::string* error) const {
  Result<Flags> flags = engine_flags(transport, error);
  if (flags.ok() && !given(*flags, "progress")) flags->emplace_back("progress", "caller");
  return flags;
}

Result<Pair> Bench::start_pair(const Flags& flags, std::string* error) const {
  Pair pair;
  std::vector<std::string> arguments{"bench", "--serve", "127.0.0.1:0", "--serve-child"};
  if (!options.config_file.empty()) {
    arguments.insert(arguments.begin(), {"--config", options.config_file});
  }
  Flags both = flags;
  // Rounds of a baseline do not poll a caller-driven engine: silence is no loss here.
  if (!given(flags, "peer_timeout_ms")) both.emplace_back("peer_timeout_ms", "20000");
  for (const auto& [name, value] : both) {
    if (name != "listen" && name != "advertise") arguments.push_back("--" + name + "=" + value);
  }
  const std::int64_t start_ns = SteadyClock().now_ns();
  auto child = ChildProcess::start(arguments);
  if (!child.ok()) {
    *error = child.status().to_string();
    return child.status();
  }
  pair.child = std::move(*child);
  const auto line = pair.child->read_line(options.timeout_ms);
  if (!line.ok()) {
    *error = pair.child->running() ? "the serving process: " + line.status().to_string()
                                   : "the serving process has ended (" + pair.child->how_ended() +
                                         "); what it said stands above";
    return line.status();
  }
  pair.spawn_ms = ms_since(start_ns);
  both.emplace_back("listen", "127.0.0.1:0");
  const auto loaded = settings(both);
  if (!loaded.ok()) {
    *error = "";  // told by settings
    return loaded.status();
  }
  auto session = Session::open(
      *loaded, {.address = *line, .child = pair.child.get(), .timeout_ms = options.timeout_ms},
      error);
  if (!session.ok()) return session.status();
  pair.session = std::move(*session);
  return pair;
}

RawSocketOptions raw_options_for(const Settings& settings) {
  const auto number = [&](std::string_view name, int fallback) {
    const std::string text = settings.value(name).text;
    std::int64_t value = 0;
    return detail::parse_value(Setting{}, text, value).ok() ? static_cast<int>(value) : fallback;
  };
  RawSocketOptions options;
  options.connections = number("tcp.lanes", 2);
  options.threads = std::max(1, number("rails_per_device", 1));
  while (options.connections % options.threads != 0) --options.threads;
  options.send_buffer_bytes = number("tcp.send_buffer_bytes", 0);
  options.recv_buffer_bytes = number("tcp.recv_buffer_bytes", 0);
  options.congestion = settings.value("tcp.congestion").text;
  return options;
}

Status verify_bed(TestBed& bed, Direction direction, bool all, bool flip,
                  std::uint64_t& wrong_bytes, std::string& detail) {
  const std::uint64_t bytes = bed.workload().spec().transfer_bytes();
  std::size_t transfers = bed.workload().transfers();
  if (!all) {
    transfers =
        std::min<std::size_t>(transfers, std::max<std::uint64_t>(1, kQuickVerifyBytes / bytes));
  }
  KVL_TRY(bed.fill());
  for (std::size_t i = 0; i < transfers; ++i) KVL_TRY(move_once(bed, direction, i, false));
  if (flip) KVL_TRY(bed.flip(direction));
  const auto check = bed.verify(direction, transfers);
  if (!check.ok()) return check.status();
  wrong_bytes += check->wrong_bytes;
  if (check->wrong_bytes > 0) {
    detail = std::to_string(check->wrong_bytes) + " wrong bytes, the first at arena offset " +
             std::to_string(check->first_offset) +
             (check->inside_page ? " inside a page" : " outside of every page");
  }
  return {};
}

// How the two engines are protected, and what authenticating this one connection took here.
void set_security(Row& row, const PeerInfo& peer, const Engine& engine) {
  row.set("encrypted", peer.encrypted);
  struct Find final : MetricVisitor {
    double seconds = 0, connections = 0;
    void counter(std::string_view name, std::string_view, const MetricLabels&,
                 double value) override {
      if (name == "kvlane_control_handshake_seconds_total") seconds = value;
      if (name == "kvlane_control_authenticated_total") connections = value;
    }
    void gauge(std::string_view, std::string_view, const MetricLabels&, double) override {}
  } found;
  engine.visit_metrics(found);
  row.set("auth_us",
          found.connections > 0 ? Value(found.seconds * 1e6 / found.connections) : Value());
}

// The same engines with encrypt=off, to compare with.
struct PlainBed {
  Pair pair;
  std::unique_ptr<TestBed> bed;
};

Result<PlainBed> open_plain(const Bench& bench, const WorkloadSpec& spec, std::string* error) {
  auto flags = bench.engine_flags(bench.options.transport, error);
  if (!flags.ok()) return flags.status();
  std::erase_if(*flags, [](const auto& flag) { return flag.first == "encrypt"; });
  flags->emplace_back("encrypt", "false");
  auto pair = bench.start_pair(*flags, error);
  if (!pair.ok()) return pair.status();
  auto bed = TestBed::open(*pair->session, spec, bench.options.foreign);
  if (!bed.ok()) return bed.status();
  PlainBed plain{std::move(*pair), std::move(*bed)};
  KVL_TRY(plain.bed->fill());
  return plain;
}

Status measure_bed(const Bench& bench, TestBed& bed, const Settings& settings, Direction direction,
                   Row& row) {
  const BenchOptions& options = bench.options;
  Session& session = bed.session();
  const WorkloadSpec& spec = bed.workload().spec();
  const auto peer = session.describe();
  if (!peer.ok()) return session.fail(peer.code(), peer.status().to_string());

  KVL_TRY(bed.fill());
  std::int64_t start_ns = SteadyClock().now_ns();
  KVL_TRY(move_once(bed, direction, 0, options.notes));
  const double first_ms = ms_since(start_ns);
  std::uint64_t warm = 0;
  for (std::size_t i = 1; i < bed.workload().transfers() && warm < kWarmUpBytes; ++i) {
    KVL_TRY(move_once(bed, direction, i, options.notes));
    warm += spec.transfer_bytes();
  }

  const LoadShape shape{direction, options.depth, options.notes};
  std::vector<std::unique_ptr<Contender>> contenders;
  contenders.push_back(make_engine_contender(bed, shape));
  std::string missing;
  const auto add = [&](Result<std::unique_ptr<Contender>> contender, const char* name) {
    if (contender.ok()) {
      contenders.push_back(std::move(*contender));
    } else {
      missing +=
          std::string(missing.empty() ? "" : "; ") + name + ": " + contender.status().to_string();
    }
  };
  const RawSocketOptions raw = raw_options_for(settings);
  // The engine's lanes resolve the setting as the raw sockets do; those can be asked.
  std::string congestion;
  if (session.transport() == "tcp") {
    Result<std::string> name = congestion_in_force(raw, options.peer.empty());
    if (!name.ok()) {
      return session.fail(name.code(), "tcp.congestion=" + raw.congestion +
                                           ": not among net.ipv4.tcp_available_congestion_control");
    }
    congestion = *std::move(name);
  }
  if (options.baseline("socket")) {
    add(make_socket_contender(bed, shape, raw, host_of(peer->address), &congestion), "socket");
  }
  if (options.baseline("memcpy")) {
    add(make_memcpy_contender(bed, shape, options.foreign), "memcpy");
  }
  if (options.baseline("process_vm") && session.transport() == "shm") {
    add(make_process_vm_contender(bed, shape), "process_vm");
  }
  std::optional<PlainBed> plain;
  if (options.baseline("plain") && peer->encrypted && options.peer.empty()) {
    std::string error;
    auto opened = open_plain(bench, spec, &error);
    if (opened.ok()) {
      plain = std::move(*opened);
      contenders.push_back(make_engine_contender(*plain->bed, shape, "plain"));
    } else {
      missing += std::string(missing.empty() ? "" : "; ") + "plain: " + error;
    }
  }
  const std::string label = session.transport() + " " + std::string(to_string(direction)) + " " +
                            std::to_string(spec.pages) + " x " + bytes_text(spec.page_bytes);
  const auto progress = [&](std::size_t round) {
    bench.progress(label + ", round " + std::to_string(round + 1));
  };
  const auto series = interleave(session, contenders, {options.seconds, 5, progress});
  if (!series.ok()) return series.status();

  set_shape(row, options, settings, session.transport(), spec, direction, congestion);
  set_results(row, spec, *series);
  row.set("open_ms", session.open_ms()).set("connect_ms", session.connect_ms());
  set_security(row, *peer, session.engine());
  row.set("register_ms", bed.register_ms()).set("first_ms", first_ms);
  if (!missing.empty()) row.set("missing", missing);
  return {};
}

Status measure_row(const Bench& bench, const WorkloadSpec& spec, Direction direction, Row& row,
                   std::string* error) {
  const BenchOptions& options = bench.options;
  if (const Status status = validate(spec); !status.ok()) {
    *error = status.context();
    return status;
  }
  const auto flags = bench.load_flags(options.transport, error);
  if (!flags.ok()) return flags.status();
  const auto settings = bench.settings(*flags);
  if (!settings.ok()) return settings.status();
  auto pair = bench.start_pair(*flags, error);
  if (!pair.ok()) return pair.status();
  Session& session = *pair->session;

  std::uint64_t wrong = 0;
  std::string detail;
  const auto all = [&]() -> Status {
    {
      auto bed = TestBed::open(session, spec, options.foreign);
      if (!bed.ok()) return bed.status();
      KVL_TRY(measure_bed(bench, **bed, *settings, direction, row));
      KVL_TRY(verify_bed(**bed, direction, options.verify, options.flip_byte, wrong, detail));
    }
    if (!options.verify) return {};
    WorkloadSpec guarded = spec;  // the same pages with guard bytes around each run
    guarded.gap_bytes = kGuardGapBytes;
    guarded.arena_bytes = 0;
    auto bed = TestBed::open(session, guarded, options.foreign);
    if (!bed.ok()) return bed.status();
    return verify_bed(**bed, direction, true, false, wrong, detail);
  };
  const Status status = all();
  if (!status.ok()) {
    *error = session.error();
    return status;
  }
  row.set("wrong_bytes", static_cast<std::int64_t>(wrong));
  row.set("verified", options.verify ? "full" : "quick");
  if (!detail.empty()) row.set("wrong", detail);
  row.set("spawn_ms", pair->spawn_ms);
  return {};
}

std::vector<Column> row_columns() {
  return {{"transport", "transport"},
          {"op", "op"},
          {"page_bytes", "page_bytes"},
          {"pages", "pages"},
          {"gb_per_s", "GB/s"},
          {"p50_us", "p50_us"},
          {"p99_us", "p99_us"},
          {"mops_per_s", "Mops/s"},
          {"cpu_s_per_gb", "cpu_s/GB"},
          {"socket_gb_per_s", "sock_GB/s"},
          {"ratio_socket", "/socket"},
          {"ratio_socket_cpu", "/sock_cpu"},
          {"memcpy_gb_per_s", "mcpy_GB/s"},
          {"ratio_memcpy", "/memcpy"},
          {"ratio_process_vm", "/proc_vm"},
          {"ratio_plain", "/plain"},
          {"auth_us", "auth_us"},
          {"wrong_bytes", "wrong"}};
}

}  // namespace kvl::bench
