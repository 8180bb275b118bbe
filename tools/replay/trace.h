// Request traces: real ones from files, or a built-in seeded workload of the same shape.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvl/status.h"

namespace kvl::replay {

// One request. Block ids name block_tokens tokens each and form a prefix chain: equal ids at equal
// positions after equal ids are equal content.
struct TraceRow {
  double at_s = 0;  // arrival, from the first row
  std::uint64_t input_tokens = 0;
  std::uint64_t output_tokens = 0;
  std::vector<std::uint64_t> block_ids;  // ceil(input_tokens / block_tokens) of them
};

struct Trace {
  std::string name;
  std::uint32_t block_tokens = 512;
  std::vector<TraceRow> rows;  // by arrival
};

inline constexpr std::uint64_t kTraceTokensMax = 1u << 20;

// Mooncake JSONL ({"timestamp": ms, "input_length", "output_length", "hash_ids": […]}, 512 tokens
// per id) or Azure CSV (TIMESTAMP,ContextTokens,GeneratedTokens; every row is unique), told apart
// by content. `limit` 0: all rows. `error` receives the file, the line and what is wrong with it.
Result<Trace> load_trace(const std::string& path, std::uint64_t limit, std::string* error);

struct WorkloadOptions {
  std::uint64_t requests = 200;
  std::uint64_t seed = 1;
  double requests_per_s = 5;          // Poisson arrivals
  double follow_up = 0.5;             // share of requests that continue an earlier conversation
  std::uint64_t input_median = 2500;  // tokens of what a request adds; log-normal
  double input_sigma = 0.9;
  std::uint64_t input_max = 65536;
  std::uint64_t output_median = 24;
};
Trace make_workload(const WorkloadOptions& options);

}  // namespace kvl::replay
