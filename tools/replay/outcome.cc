// The summary of a replay, as table and as JSON.
#include "tools/replay/outcome.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <map>

namespace kvl::replay {
namespace {

double percentile(std::vector<double>& sorted, double p) {
  if (sorted.empty()) return 0;
  const double at = p * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - static_cast<double>(low));
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
  boost::json::array errors(s.errors.begin(), s.errors.end());
  const boost::json::object out{{"trace", setup.trace},
                                {"model", setup.model},
                                {"fleet", setup.fleet},
                                {"time_scale", setup.time_scale},
                                {"transport", setup.transport},
                                {"requests", s.requests},
                                {"ok", s.ok},
                                {"failed", s.failed},
                                {"unended", s.unended},
                                {"seconds", s.seconds},
                                {"pages_moved", s.pages_moved},
                                {"pages_verified", s.pages_verified},
                                {"pages_wrong", s.pages_wrong},
                                {"bytes_moved", s.bytes_moved},
                                {"gb_per_s", s.gb_per_s},
                                {"input_tokens", s.input_tokens},
                                {"prefix_hit_tokens", setup.prefix_hit_tokens},
                                {"output_tokens", s.output_tokens},
                                {"ttft_p50_ms", s.ttft_p50_ms},
                                {"ttft_p90_ms", s.ttft_p90_ms},
                                {"ttft_p99_ms", s.ttft_p99_ms},
                                {"transfer_p50_ms", s.transfer_p50_ms},
                                {"transfer_p90_ms", s.transfer_p90_ms},
                                {"transfer_p99_ms", s.transfer_p99_ms},
                                {"errors", std::move(errors)}};
  return boost::json::serialize(out);
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
      "  time to first token  p50 {:.1f} ms   p90 {:.1f} ms   p99 {:.1f} ms\n"
      "  KV transfer          p50 {:.1f} ms   p90 {:.1f} ms   p99 {:.1f} ms\n"
      "  pages             {:>12} verified, {} wrong\n",
      setup.trace, setup.fleet, setup.model, s.requests, s.ok, s.failed,
      s.unended > 0 ? fmt::format(", {} without an end", s.unended) : std::string(), s.input_tokens,
      hit, static_cast<double>(s.bytes_moved) / 1e9, s.pages_moved, setup.transport, s.gb_per_s,
      s.ttft_p50_ms, s.ttft_p90_ms, s.ttft_p99_ms, s.transfer_p50_ms, s.transfer_p90_ms,
      s.transfer_p99_ms, s.pages_verified, s.pages_wrong);
  for (const std::string& error : s.errors) out += "  failed: " + error + "\n";
  return out;
}

}  // namespace kvl::replay
