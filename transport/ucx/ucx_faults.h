// Why operations over UCX fail: a closed list of causes.
#pragma once

#include <ucs/type/status.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvl/metrics.h"
#include "kvl/status.h"

namespace kvl::ucx {

enum class Fault : std::uint8_t {
  connection_lost,
  unresponsive,
  unreachable,
  wrong_transport,
  flooded,
  refused,
  no_resource,
  other,
};
inline constexpr std::size_t kFaults = static_cast<std::size_t>(Fault::other) + 1;

struct FaultInfo {
  Fault fault;
  Code code;
  std::string_view cause;  // in metrics and logs; stable
  std::string_view hint;
  bool peer_lost;  // nothing more will work with this peer
};
const FaultInfo& about(Fault fault);
Fault classify(ucs_status_t status);

using CountByFault = std::array<Counter, kFaults>;

}  // namespace kvl::ucx
