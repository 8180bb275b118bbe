// Reading and making request traces.
#include "tools/replay/trace.h"

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <random>

namespace kvl::replay {
namespace {

namespace json = boost::json;

bool whole(const json::object& row, const char* key, std::uint64_t max, std::uint64_t& out) {
  const json::value* const value = row.if_contains(key);
  if (value == nullptr || !value->is_number()) return false;
  boost::system::error_code failed;
  out = value->to_number<std::uint64_t>(failed);
  return !failed && out <= max;
}

// "" or what is wrong.
std::string mooncake_row(const std::string& line, std::uint32_t block_tokens, double& at_ms,
                         TraceRow& row) {
  boost::system::error_code failed;
  const json::value parsed = json::parse(line, failed);
  if (failed || !parsed.is_object()) return "not a JSON object";
  const json::object& object = parsed.get_object();
  const json::value* const timestamp = object.if_contains("timestamp");
  if (timestamp == nullptr || !timestamp->is_number()) return "no \"timestamp\" in ms";
  at_ms = timestamp->to_number<double>();
  if (!std::isfinite(at_ms) || at_ms < 0) return "\"timestamp\" out of range";
  if (!whole(object, "input_length", kTraceTokensMax, row.input_tokens) || row.input_tokens == 0) {
    return "\"input_length\" must be 1 … 1048576 tokens";
  }
  if (!whole(object, "output_length", kTraceTokensMax, row.output_tokens)) {
    return "\"output_length\" must be at most 1048576 tokens";
  }
  const json::value* const ids = object.if_contains("hash_ids");
  if (ids == nullptr || !ids->is_array()) return "no \"hash_ids\" list";
  for (const json::value& id : ids->get_array()) {
    row.block_ids.push_back(id.to_number<std::uint64_t>(failed));
    if (failed) return "\"hash_ids\" must be whole numbers";
  }
  if (row.block_ids.size() != (row.input_tokens + block_tokens - 1) / block_tokens) {
    return "\"hash_ids\" does not have one id per 512 tokens";
  }
  return "";
}

// "2023-11-16 18:17:03.9799600" to seconds. NaN: not of that form.
double parse_time(const std::string& text) {
  std::tm time{};
  char* const rest = ::strptime(text.c_str(), "%Y-%m-%d %H:%M:%S", &time);
  if (rest == nullptr) return std::nan("");
  const double seconds = static_cast<double>(::timegm(&time));
  if (*rest == '\0') return seconds;
  char* end = nullptr;
  const double part = std::strtod(rest, &end);
  return *rest == '.' && *end == '\0' ? seconds + part : std::nan("");
}

bool parse_count(const std::string& text, std::uint64_t& out) {
  const char* const end = text.data() + text.size();
  const auto [rest, errc] = std::from_chars(text.data(), end, out);
  return errc == std::errc{} && rest == end && out <= kTraceTokensMax;
}

std::string azure_row(const std::string& line, std::uint64_t number, std::uint32_t block_tokens,
                      double& at_ms, TraceRow& row) {
  const std::size_t first = line.find(',');
  const std::size_t second = first == std::string::npos ? first : line.find(',', first + 1);
  if (second == std::string::npos) return "not TIMESTAMP,ContextTokens,GeneratedTokens";
  at_ms = parse_time(line.substr(0, first)) * 1000;
  if (!std::isfinite(at_ms)) return "the time must be YYYY-MM-DD HH:MM:SS.fraction";
  if (!parse_count(line.substr(first + 1, second - first - 1), row.input_tokens) ||
      row.input_tokens == 0 || !parse_count(line.substr(second + 1), row.output_tokens)) {
    return "token counts must be whole numbers up to 1048576";
  }
  // Nothing is known of shared prefixes: every block is its own.
  for (std::uint64_t at = 0; at < row.input_tokens; at += block_tokens) {
    row.block_ids.push_back((number << 20) | (at / block_tokens));
  }
  return "";
}

}  // namespace

Result<Trace> load_trace(const std::string& path, std::uint64_t limit, std::string* error) {
  std::ifstream file(path);
  if (!file) {
    *error = path + ": cannot be read";
    return Status{Code::not_found, "trace file"};
  }
  Trace trace;
  trace.name = path.substr(path.rfind('/') + 1);
  std::vector<double> at_ms;
  bool azure = false;
  std::uint64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    if (number == 1 && line.rfind("TIMESTAMP,", 0) == 0) {
      azure = true;
      continue;
    }
    TraceRow row;
    double at = 0;
    const std::string wrong = azure ? azure_row(line, number, trace.block_tokens, at, row)
                                    : mooncake_row(line, trace.block_tokens, at, row);
    if (!wrong.empty()) {
      *error = path + ", line " + std::to_string(number) + ": " + wrong;
      return Status{Code::invalid_argument, "trace row"};
    }
    trace.rows.push_back(std::move(row));
    at_ms.push_back(at);
    if (limit != 0 && trace.rows.size() >= limit) break;
  }
  if (trace.rows.empty()) {
    *error = path + ": no rows; Mooncake JSONL or Azure CSV is expected";
    return Status{Code::invalid_argument, "trace file"};
  }
  const double begin_ms = *std::min_element(at_ms.begin(), at_ms.end());
  for (std::size_t i = 0; i < at_ms.size(); ++i) trace.rows[i].at_s = (at_ms[i] - begin_ms) / 1000;
  std::stable_sort(trace.rows.begin(), trace.rows.end(),
                   [](const TraceRow& a, const TraceRow& b) { return a.at_s < b.at_s; });
  return trace;
}

Trace make_workload(const WorkloadOptions& options) {
  std::mt19937_64 random(options.seed);
  std::exponential_distribution<double> gap(options.requests_per_s);
  std::lognormal_distribution<double> input(std::log(static_cast<double>(options.input_median)),
                                            options.input_sigma);
  std::lognormal_distribution<double> output(std::log(static_cast<double>(options.output_median)),
                                             0.7);
  std::uniform_real_distribution<double> uniform(0, 1);
  Trace trace;
  trace.name = "built-in, seed " + std::to_string(options.seed);
  std::uint64_t next_id = 1;
  double at_s = 0;
  for (std::uint64_t i = 0; i < options.requests; ++i) {
    TraceRow row;
    row.at_s = i == 0 ? 0 : (at_s += gap(random));
    std::uint64_t shared = 0;
    if (!trace.rows.empty() && uniform(random) < options.follow_up) {
      // A follow-up repeats the full blocks of an earlier prompt; recent ones are likelier.
      const double back = uniform(random) * uniform(random);
      const std::size_t pick =
          trace.rows.size() - 1 -
          static_cast<std::size_t>(back * static_cast<double>(trace.rows.size() - 1));
      const TraceRow& earlier = trace.rows[pick];
      shared = earlier.input_tokens / trace.block_tokens;
      row.block_ids.assign(earlier.block_ids.begin(),
                           earlier.block_ids.begin() + static_cast<std::ptrdiff_t>(shared));
    }
    const auto added = static_cast<std::uint64_t>(std::clamp<double>(input(random), 64, 1e6));
    row.input_tokens = std::min(shared * trace.block_tokens + added, options.input_max);
    row.output_tokens = static_cast<std::uint64_t>(std::clamp<double>(output(random), 1, 256));
    const std::uint64_t blocks = (row.input_tokens + trace.block_tokens - 1) / trace.block_tokens;
    row.block_ids.resize(std::min<std::size_t>(row.block_ids.size(), blocks));
    while (row.block_ids.size() < blocks) row.block_ids.push_back(next_id++);
    trace.rows.push_back(std::move(row));
  }
  return trace;
}

}  // namespace kvl::replay
