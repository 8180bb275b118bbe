// Why the rendezvous refuses a well-formed HTTP request: one closed list of causes, for counters
// and log lines.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvl/metrics.h"
#include "kvl/status.h"

namespace kvl::bootstrap {

enum class Refusal : std::uint8_t { bad_request, not_found, conflict, unavailable, full };
inline constexpr std::size_t kRefusals = static_cast<std::size_t>(Refusal::full) + 1;

struct RefusalInfo {
  Refusal refusal;
  Code code;
  std::string_view cause;  // in metrics and logs; stable
  std::string_view hint;
  bool warn;  // the operator should look; else a client errs, or ranks come and go
};
const RefusalInfo& about(Refusal refusal);
// Of an answer from 400 on, and of the code in its body.
Refusal refusal_of(int status, std::string_view code);

// Written by the service's thread.
struct RefusalCounters {
  std::array<Counter, kRefusals> counts;

  // Counts it and writes the line. `path` and `answer` may be anybody's text.
  void add(Refusal refusal, std::string_view path, std::string_view answer);
};

}  // namespace kvl::bootstrap
