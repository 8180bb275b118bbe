// Why a connection to the shm socket is turned away: one closed list of causes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kvl/metrics.h"

namespace kvl::shm {

enum class Refusal : std::uint8_t {
  other_user,
  crowded,  // too many wait with their hello
  timed_out,
  malformed,      // it said something else than hello, or left
  unknown_token,  // of no session that we are in
};

class Refusals {
 public:
  // Counts it and writes the line. `pid` and `uid`: whose, 0 where the kernel does not say.
  void add(Refusal refusal, int pid, unsigned uid);
  void visit(MetricVisitor& visitor, const MetricLabels& labels) const;

 private:
  static constexpr std::size_t kCount = static_cast<std::size_t>(Refusal::unknown_token) + 1;
  std::array<Counter, kCount> counts_;
};

}  // namespace kvl::shm
