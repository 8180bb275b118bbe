// Trace files: Mooncake JSONL and Azure CSV. A trace that loads is one that can be replayed.
#include "tools/replay/trace.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>

#include "tests/fuzz/fuzz.h"
#include "transport/base/unique_fd.h"

namespace kvl::fuzz {

void fuzz_trace(Bytes input) {
  if (input.size() > 16 << 10) return;
  static const UniqueFd file(::memfd_create("trace", MFD_CLOEXEC));
  require(::ftruncate(file.get(), 0) == 0 && ::pwrite(file.get(), input.data(), input.size(), 0) ==
                                                 static_cast<ssize_t>(input.size()),
          "a file in memory");
  std::string error;
  const auto trace = replay::load_trace("/proc/self/fd/" + std::to_string(file.get()), 64, &error);
  if (!trace.ok()) {
    require(!error.empty(), "a refusal says why");
    return;
  }
  require(!trace->rows.empty() && trace->rows.size() <= 64, "rows as many as wanted");
  double last = 0;
  for (const replay::TraceRow& row : trace->rows) {
    require(std::isfinite(row.at_s) && row.at_s >= last, "arrivals are ordered times");
    last = row.at_s;
    require(row.input_tokens >= 1 && row.input_tokens <= replay::kTraceTokensMax &&
                row.output_tokens <= replay::kTraceTokensMax,
            "token counts are in range");
    require(
        row.block_ids.size() == (row.input_tokens + trace->block_tokens - 1) / trace->block_tokens,
        "one id per block");
  }
}

Seeds seeds_trace() {
  return {
      seed("{\"timestamp\":0,\"input_length\":600,\"output_length\":5,\"hash_ids\":[1,2]}\n"
           "{\"timestamp\":27482.5,\"input_length\":1,\"output_length\":0,\"hash_ids\":[3]}\r\n"),
      seed("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n"
           "2023-11-16 18:17:04,5,0\r\n")};
}

}  // namespace kvl::fuzz
