// What became of the requests of a replay: one record each, and the summary of all.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvl/status.h"

namespace kvl::replay {

struct Outcome {
  bool ended = false;
  bool ok = false;
  std::string error;    // when not ok
  double sent_s = 0;    // from the start of the replay
  double first_s = -1;  // first event of the answer; -1: none
  double end_s = 0;
  std::uint64_t input_tokens = 0, output_tokens = 0;
  // From the decode worker's answer.
  std::uint64_t pages = 0;                            // moved
  std::uint64_t pages_verified = 0, pages_wrong = 0;  // all pages of the prompt, byte for byte
  std::uint64_t bytes = 0;
  double transfer_ms = 0;  // exposed: from the end of prefill to commit at decode
  double handoff_ms = 0;   // from the handoff's opening at decode to commit
  double waited_ms = 0;    // for admission at decode
};

struct Summary {
  std::uint64_t requests = 0, ok = 0, failed = 0, unended = 0;
  std::uint64_t pages_moved = 0, pages_verified = 0, pages_wrong = 0, bytes_moved = 0;
  std::uint64_t input_tokens = 0, output_tokens = 0;
  double seconds = 0, gb_per_s = 0;
  // NaN: no request has got so far. JSON then has null, the table "-".
  double ttft_p50_ms = 0, ttft_p90_ms = 0, ttft_p99_ms = 0;
  double transfer_p50_ms = 0, transfer_p90_ms = 0, transfer_p99_ms = 0;
  std::string transport;            // what was really used; several joined by '+'
  std::vector<std::string> errors;  // distinct, with counts
};
Summary summarise(const std::vector<Outcome>& outcomes);

struct Setup {
  std::string trace, model, fleet, transport;  // for titles
  double time_scale = 1;
  std::uint64_t prefix_hit_tokens = 0;  // found in the prefill workers' caches
};
std::string to_json(const Summary& summary, const Setup& setup);
// The human table.
std::string to_text(const Summary& summary, const Setup& setup);
// One self-contained page: summary, TTFT and transfer-time distributions, rates over time, as SVG.
std::string to_html(const Summary& summary, const Setup& setup,
                    const std::vector<Outcome>& outcomes);

}  // namespace kvl::replay
