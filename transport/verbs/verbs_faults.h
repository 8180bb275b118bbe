// Why work requests and devices fail: a closed list of causes.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvl/metrics.h"
#include "kvl/status.h"

namespace kvl::verbs {

enum class Fault : std::uint8_t {
  stale_key,
  unresponsive,
  receiver_not_ready,
  refused,
  local,
  flushed,
  port_down,
  device_gone,
  other,
};
inline constexpr std::size_t kFaults = static_cast<std::size_t>(Fault::other) + 1;

struct FaultInfo {
  Fault fault;
  Code code;               // of the batch that met it; the peer is lost in any case
  std::string_view cause;  // in metrics and logs; stable
  std::string_view hint;
};
const FaultInfo& about(Fault fault);
// Of a completion that is no success.
Fault classify(ibv_wc_status status);

using CountByFault = std::array<Counter, kFaults>;

}  // namespace kvl::verbs
