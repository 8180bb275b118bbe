// Why control connections are turned away: one closed list of causes, for the counter, the log line
// and what the operator is told.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvl/metrics.h"
#include "kvl/status.h"

namespace kvl {

enum class Refusal : std::uint8_t {
  // There are too many.
  connections,  // of both directions
  strangers,    // the oldest that has not said who it is goes
  address,      // strangers of one address
  peers,        // peers_max
  descriptors,  // of this process
  // They do not say who they are, or not to our satisfaction.
  timed_out,
  secret_required,  // it has no secret, and we have one
  no_secret,        // it has a secret, and we have none
  wrong_secret,
  tampered,  // a sealed message was changed, repeated or lost
  // What they say.
  too_long,
  malformed,
  other_version,
  out_of_place,
  memories,  // peer_memories_max
};
inline constexpr std::size_t kRefusals = static_cast<std::size_t>(Refusal::memories) + 1;

struct RefusalInfo {
  Refusal refusal;
  Code code;
  std::string_view cause;  // in metrics and logs; stable
  std::string_view hint;
};
const RefusalInfo& about(Refusal refusal);

// Of one layer of the control connections. Written by one thread, read by any.
class Refusals {
 public:
  using Counts = std::array<std::uint64_t, kRefusals>;

  // Counts it and writes the line. `why` says more than the cause, where there is more to say.
  void add(Refusal refusal, std::string_view remote, std::string_view why = {});
  void add_to(Counts& counts) const;

 private:
  std::array<Counter, kRefusals> counts_;
};

void visit_refusals(MetricVisitor& visitor, const Refusals::Counts& counts);

}  // namespace kvl
