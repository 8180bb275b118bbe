// Why lanes do not come up: one closed list of causes, for counters and log lines.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvl/metrics.h"
#include "kvl/status.h"

namespace kvl::tcp {

enum class LaneFault : std::uint8_t {
  crowded,  // too many connections wait with their greeting
  timed_out,
  closed,         // by the other side, before it was up
  malformed,      // no greeting, or of another version
  unknown_token,  // not of a session that we are in
  wrong_proof,    // it does not know the session's key
  stale,          // of an attempt that is over
  refused,        // nobody listens there
  unreachable,    // no way there, or no descriptor
};
inline constexpr std::size_t kLaneFaults = static_cast<std::size_t>(LaneFault::unreachable) + 1;

struct LaneFaultInfo {
  LaneFault fault;
  Code code;
  std::string_view cause;  // in metrics and logs; stable
  std::string_view hint;
  bool hostile;  // no peer of ours does that
};
const LaneFaultInfo& about(LaneFault fault);

using CountByFault = std::array<Counter, kLaneFaults>;

}  // namespace kvl::tcp
