// Between two hosts: which transport is faster, by how much, and what that means for a prompt.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "bench/support/stats.h"
#include "kvl/page_layout.h"
#include "tools/bench/modes.h"

namespace kvl::bench {
namespace {

// One transport under comparison: an engine of its own towards the same serving side.
struct Side {
  std::string asked;  // as the user wrote it
  Settings settings;
  std::unique_ptr<Session> session;
  std::unique_ptr<TestBed> bed;
};

Status open_side(const Bench& bench, Side& side, std::string* error) {
  auto flags = bench.engine_flags(side.asked, error);
  if (!flags.ok()) return flags.status();
  flags->emplace_back("peer_timeout_ms", "20000");
  auto settings = bench.settings(*flags);
  if (!settings.ok()) return settings.status();
  side.settings = std::move(*settings);
  auto session =
      Session::open(side.settings,
                    {.address = bench.options.peer, .timeout_ms = bench.options.timeout_ms}, error);
  if (!session.ok()) {
    *error = side.asked + ": " + *error;
    return session.status();
  }
  side.session = std::move(*session);
  return {};
}

std::string host_of(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  return host.size() > 2 && host.front() == '[' ? host.substr(1, host.size() - 2) : host;
}

// "1.31 (1.25 to 1.38)"
std::string text_of(const Ratio& ratio) {
  char text[80];
  std::snprintf(text, sizeof(text), "%.2f (%.2f to %.2f)", ratio.value, ratio.low, ratio.high);
  return text;
}

std::string size_verdict(const std::string& first, const std::string& second, const Ratio& ratio) {
  if (!ratio.distinct()) return "no difference beyond noise";
  const double size = ratio.value > 1 ? ratio.value : 1 / ratio.value;
  char text[32];
  std::snprintf(text, sizeof(text), " is %.2fx as fast", size);
  return (ratio.value > 1 ? second : first) + text;
}

// Time that a prompt's KV is on its way, were nothing of it hidden behind the prefill, and the part
// that streaming layer by layer cannot hide.
void set_exposed(Row& row, const std::string& name, const BenchOptions& options,
                 const ModelGeometry& model, double gb_per_s) {
  const double bytes =
      static_cast<double>(model.bytes_per_token()) * static_cast<double>(options.prompt_tokens);
  const double ms = bytes / (gb_per_s * 1e9) * 1e3;
  row.set(name + "_transfer_ms", ms);
  row.set(name + "_last_layer_ms", ms / static_cast<double>(model.layers));
}

struct Comparison {
  const Bench& bench;
  ModelGeometry model;
  std::vector<Side> sides;
  std::size_t first_wins = 0, second_wins = 0, sizes = 0;
  std::vector<Row> rows;

  Status measure(const WorkloadSpec& spec, Direction direction, Row& row, std::string* error);
  void set(Row& row, const WorkloadSpec& spec, Direction direction,
           const std::vector<Series>& series);
};

Status Comparison::measure(const WorkloadSpec& spec, Direction direction, Row& row,
                           std::string* error) {
  const BenchOptions& options = bench.options;
  std::vector<std::unique_ptr<Contender>> contenders;
  const LoadShape shape{direction, options.depth, options.notes};
  std::uint64_t wrong = 0;
  const auto work = [&]() -> Status {
    for (Side& side : sides) {
      const auto told = [&](const Status& status) {
        *error = side.asked + ": " + side.session->error();
        return status;
      };
      auto bed = TestBed::open(*side.session, spec, options.foreign);
      if (!bed.ok()) return told(bed.status());
      side.bed = std::move(*bed);
      std::string detail;
      const Status checked =
          verify_bed(*side.bed, direction, options.verify, options.flip_byte, wrong, detail);
      if (!checked.ok()) return told(checked);
      contenders.push_back(make_engine_contender(*side.bed, shape));
    }
    if (options.baseline("socket")) {
      auto socket = make_socket_contender(*sides[0].bed, shape, raw_options_for(sides[0].settings),
                                          host_of(options.peer));
      if (socket.ok()) {
        contenders.push_back(std::move(*socket));
      } else {
        row.set("missing", "socket: " + socket.status().to_string());
      }
    }
    const auto series = interleave(*sides[0].session, contenders, {options.seconds, 8, {}});
    if (!series.ok()) {
      for (const Side& side : sides) {
        if (!side.session->error().empty()) *error = side.asked + ": " + side.session->error();
      }
      return series.status();
    }
    set(row, spec, direction, *series);
    row.set("wrong_bytes", static_cast<std::int64_t>(wrong));
    return {};
  };
  const Status status = work();
  contenders.clear();
  for (Side& side : sides) side.bed.reset();
  return status;
}

void Comparison::set(Row& row, const WorkloadSpec& spec, Direction direction,
                     const std::vector<Series>& series) {
  row.set("op", std::string(to_string(direction)));
  row.set("page_bytes", static_cast<std::int64_t>(spec.page_bytes));
  row.set("pages", static_cast<std::int64_t>(spec.pages));
  for (std::size_t i = 0; i < sides.size(); ++i) {
    const std::string name = i == 0 ? "first" : "second";
    row.set(name, sides[i].session->transport());
    row.set(name + "_gb_per_s", series[i].rate());
    row.set(name + "_p50_us", series[i].percentile_us(0.5));
    row.set(name + "_p99_us", series[i].percentile_us(0.99));
    row.set(name + "_cpu_s_per_gb", series[i].cpu_s_per_gb());
    set_exposed(row, name, bench.options, model, series[i].rate());
    if (series.size() <= sides.size()) continue;
    const Ratio ratio = paired_ratio(series[i].gb_per_s, series.back().gb_per_s);
    row.set(name + "_ratio_socket", ratio.value);
  }
  if (series.size() > sides.size()) row.set("socket_gb_per_s", series.back().rate());
  if (sides.size() < 2) return;
  const Ratio ratio = paired_ratio(series[1].gb_per_s, series[0].gb_per_s);
  row.set("ratio", ratio.value).set("ratio_low", ratio.low).set("ratio_high", ratio.high);
  row.set("ratio_text", text_of(ratio));
  row.set("verdict", size_verdict(sides[0].asked, sides[1].asked, ratio));
  ++sizes;
  if (ratio.distinct()) ++(ratio.value > 1 ? second_wins : first_wins);
}

std::string final_verdict(const Comparison& comparison) {
  const BenchOptions& options = comparison.bench.options;
  const Row& last = comparison.rows.back();
  std::string text;
  if (comparison.sides.size() == 2) {
    const std::string& first = comparison.sides[0].asked;
    const std::string& second = comparison.sides[1].asked;
    if (comparison.first_wins == 0 && comparison.second_wins == 0) {
      text = first + " and " + second + " are equal within noise at every size: use either";
    } else if (comparison.second_wins == 0 || comparison.first_wins == 0) {
      const bool second_better = comparison.second_wins > 0;
      text = "use " + (second_better ? second : first) + ": faster at " +
             std::to_string(std::max(comparison.first_wins, comparison.second_wins)) + " of " +
             std::to_string(comparison.sizes) + " sizes, slower at none";
    } else {
      text = "it depends on the page size: " + first + " wins at " +
             std::to_string(comparison.first_wins) + ", " + second + " at " +
             std::to_string(comparison.second_wins) + " of " + std::to_string(comparison.sizes);
    }
    text += ". ";
  }
  text += options.model + ", " + std::to_string(options.prompt_tokens) + " tokens, pages of " +
          bytes_text(static_cast<std::uint64_t>(last.number("page_bytes"))) + ":";
  for (std::size_t i = 0; i < comparison.sides.size(); ++i) {
    const std::string name = i == 0 ? "first" : "second";
    text += (i == 0 ? " " : ", ") + comparison.sides[i].asked + " " +
            last.text(name + "_transfer_ms") + " ms exposed, " +
            last.text(name + "_last_layer_ms") + " ms when streamed layer by layer";
  }
  return text;
}

std::vector<Column> compare_columns() {
  return {{"op", "op"},
          {"page_bytes", "page_bytes"},
          {"first_gb_per_s", "1st_GB/s"},
          {"second_gb_per_s", "2nd_GB/s"},
          {"socket_gb_per_s", "sock_GB/s"},
          {"ratio_text", "2nd/1st (95 % interval)"},
          {"first_transfer_ms", "1st_ms"},
          {"second_transfer_ms", "2nd_ms"},
          {"wrong_bytes", "wrong"},
          {"verdict", "verdict"}};
}

}  // namespace

int run_compare(const Bench& bench) {
  const BenchOptions& options = bench.options;
  const auto model = find_geometry(options.model);
  if (!model.ok()) {
    std::string names;
    for (const NamedGeometry& known : known_geometries()) names += " " + std::string(known.name);
    return fail("unknown model '" + options.model + "'; known:" + names);
  }
  Comparison comparison{bench, *model, {}};
  std::vector<std::string> asked = options.compare;
  if (asked.empty()) asked = {options.transport};
  if (asked.size() > 2) return fail("--compare takes two transports");
  for (const std::string& transport : asked) {
    bench.progress("connecting over " + transport);
    std::string error;
    Side side{transport, {}, nullptr, nullptr};
    const Status status = open_side(bench, side, &error);
    bench.progress("");
    if (!status.ok()) return fail(error);
    comparison.sides.push_back(std::move(side));
  }
  Report report(stdout, options.format, compare_columns());
  bool wrong = false;
  for (const Direction direction : options.directions) {
    for (const std::uint64_t page_bytes : options.page_bytes) {
      WorkloadSpec spec = options.workload;
      spec.page_bytes = page_bytes;
      bench.progress(std::string(to_string(direction)) + " " + bytes_text(page_bytes));
      Row row;
      std::string error;
      const Status status = comparison.measure(spec, direction, row, &error);
      bench.progress("");
      if (!status.ok()) return fail(error.empty() ? status.to_string() : error);
      row.set("model", options.model);
      row.set("prompt_tokens", static_cast<std::int64_t>(options.prompt_tokens));
      wrong = wrong || row.number("wrong_bytes") > 0;
      report.add(row);
      comparison.rows.push_back(std::move(row));
    }
  }
  const std::string verdict = final_verdict(comparison);
  if (options.format == Format::text) report.note("\n" + verdict);
  if (options.format == Format::json) report.add(Row().set("final_verdict", verdict));
  if (wrong) return fail("wrong bytes: see the rows");
  return 0;
}

}  // namespace kvl::bench
