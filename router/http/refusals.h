// Why an HTTP server turns a client away: one closed list of causes, for counters and log lines.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvl/metrics.h"
#include "kvl/status.h"

namespace kvl::http {

enum class Refusal : std::uint8_t {
  crowded,          // max_connections: the one that is idle longest goes
  crowded_address,  // max_connections_per_address
  too_often,        // max_requests_per_second_per_address
  overloaded,       // max_buffered_bytes, or no memory
  unauthorized,     // no key or signature, or a wrong one
  too_slow,
  too_large,
  bad_request,
  unsupported,
};
inline constexpr std::size_t kRefusals = static_cast<std::size_t>(Refusal::unsupported) + 1;

struct RefusalInfo {
  Refusal refusal;
  Code code;
  std::string_view cause;  // in metrics and logs; stable
  std::string_view hint;
  bool warn;  // a limit of this server was reached, or somebody is where he does not belong
};
const RefusalInfo& about(Refusal refusal);
// Of an answer that the server gives by itself.
Refusal refusal_of(int status);

// Written by the loop's thread.
struct RefusalCounters {
  std::array<Counter, kRefusals> counts;

  // Counts it and writes the line.
  void add(Refusal refusal, std::string_view client, std::string_view why = {});
};

}  // namespace kvl::http
