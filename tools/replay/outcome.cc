// The summary of a replay, as table and as JSON.
#include "tools/replay/outcome.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "bench/support/output.h"

namespace kvl::replay {
namespace {

double percentile(std::vector<double>& sorted, double p) {
  if (sorted.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double at = p * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - static_cast<double>(low));
}

std::string ms(double value) {
  return std::isfinite(value) ? fmt::format("{:.1f} ms", value) : "-";
}

}  // namespace

Summary summarise(const std::vector<Outcome>& outcomes) {
  Summary s;
  std::vector<double> ttft, transfer;
  std::map<std::string, int> errors;
  for (const Outcome& o : outcomes) {
    ++s.requests;
    s.ok += o.ok;
    s.failed += o.ended && !o.ok;
    s.unended += !o.ended;
    if (o.ended && !o.ok) ++errors[o.error];
    s.pages_moved += o.pages;
    s.pages_verified += o.pages_verified;
    s.pages_wrong += o.pages_wrong;
    s.bytes_moved += o.bytes;
    s.seconds = std::max(s.seconds, o.end_s);
    if (!o.ok) continue;
    s.input_tokens += o.input_tokens;
    s.output_tokens += o.output_tokens;
    ttft.push_back((o.first_s - o.sent_s) * 1000);
    transfer.push_back(o.transfer_ms);
  }
  std::sort(ttft.begin(), ttft.end());
  std::sort(transfer.begin(), transfer.end());
  s.ttft_p50_ms = percentile(ttft, 0.5);
  s.ttft_p90_ms = percentile(ttft, 0.9);
  s.ttft_p99_ms = percentile(ttft, 0.99);
  s.transfer_p50_ms = percentile(transfer, 0.5);
  s.transfer_p90_ms = percentile(transfer, 0.9);
  s.transfer_p99_ms = percentile(transfer, 0.99);
  if (s.seconds > 0) s.gb_per_s = static_cast<double>(s.bytes_moved) / 1e9 / s.seconds;
  for (const auto& [text, count] : errors) {
    s.errors.push_back(fmt::format("{} × {}", count, text));
  }
  return s;
}

std::string to_json(const Summary& s, const Setup& setup) {
  const auto count = [](std::uint64_t value) { return static_cast<std::int64_t>(value); };
  bench::Row row;
  row.set("trace", setup.trace).set("model", setup.model).set("fleet", setup.fleet);
  row.set("time_scale", setup.time_scale).set("transport", setup.transport);
  row.set("requests", count(s.requests)).set("ok", count(s.ok)).set("failed", count(s.failed));
  row.set("unended", count(s.unended)).set("seconds", s.seconds);
  row.set("pages_moved", count(s.pages_moved)).set("pages_verified", count(s.pages_verified));
  row.set("pages_wrong", count(s.pages_wrong)).set("bytes_moved", count(s.bytes_moved));
  row.set("gb_per_s", s.gb_per_s).set("input_tokens", count(s.input_tokens));
  row.set("prefix_hit_tokens", count(setup.prefix_hit_tokens));
  row.set("output_tokens", count(s.output_tokens));
  row.set("ttft_p50_ms", s.ttft_p50_ms).set("ttft_p90_ms", s.ttft_p90_ms);
  row.set("ttft_p99_ms", s.ttft_p99_ms).set("transfer_p50_ms", s.transfer_p50_ms);
  row.set("transfer_p90_ms", s.transfer_p90_ms).set("transfer_p99_ms", s.transfer_p99_ms);
  std::string out = bench::json(row);
  out.pop_back();
  out += ", \"errors\": [";
  for (const std::string& error : s.errors) {
    out += (&error == s.errors.data() ? "" : ", ") + bench::json_string(error);
  }
  return out + "]}";
}

std::string to_text(const Summary& s, const Setup& setup) {
  const double hit = s.input_tokens == 0 ? 0
                                         : 100.0 * static_cast<double>(setup.prefix_hit_tokens) /
                                               static_cast<double>(s.input_tokens);
  std::string out = fmt::format(
      "\nReplay of {} over {} ({})\n"
      "  requests          {:>12}   {} ok, {} failed{}\n"
      "  prompt tokens     {:>12}   {:.1f} % from prefill's prefix cache\n"
      "  KV moved          {:>9.2f} GB   {} pages over {}, {:.2f} GB/s on average\n"
      "  time to first token  p50 {}   p90 {}   p99 {}\n"
      "  KV transfer          p50 {}   p90 {}   p99 {}\n"
      "  pages             {:>12} verified, {} wrong\n",
      setup.trace, setup.fleet, setup.model, s.requests, s.ok, s.failed,
      s.unended > 0 ? fmt::format(", {} without an end", s.unended) : std::string(), s.input_tokens,
      hit, static_cast<double>(s.bytes_moved) / 1e9, s.pages_moved, setup.transport, s.gb_per_s,
      ms(s.ttft_p50_ms), ms(s.ttft_p90_ms), ms(s.ttft_p99_ms), ms(s.transfer_p50_ms),
      ms(s.transfer_p90_ms), ms(s.transfer_p99_ms), s.pages_verified, s.pages_wrong);
  for (const std::string& error : s.errors) out += "  failed: " + error + "\n";
  return out;
}

}  // namespace kvl::replay
