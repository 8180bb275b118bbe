// Why operations of a fabric fail: a closed list of causes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvl/metrics.h"
#include "kvl/status.h"

namespace kvl::libfabric {

enum class Fault : std::uint8_t {
  stale_key,
  restarted_peer,
  receiver_not_ready,
  unresponsive,
  unknown_peer,
  unreachable,
  connection_lost,
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
// An error completion: `error` is libfabric's, `provider_error` means something for EFA only.
Fault classify(bool efa, int error, int provider_error);

using CountByFault = std::array<Counter, kFaults>;

}  // namespace kvl::libfabric
