// Many seeds on all cores, and the way from a failing run to a small one.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "tools/sim/run.h"

namespace kvl::simulation {

struct Failure {
  RunOptions options;
  RunReport report;
};

struct Totals {
  std::uint64_t runs = 0, requests = 0, done = 0, failed = 0, refused = 0;
  std::uint64_t quarantined = 0, crashes = 0, faults = 0, steps = 0;
  std::int64_t virtual_ns = 0;
  std::uint64_t digest = 0;        // of all runs, in no order
  std::optional<Failure> failure;  // of the lowest seed that was seen to fail
};

// Seeds options.seed … + runs - 1, `threads` at a time; ends early when one fails. `told(runs)` is
// called by any thread, one at a time.
Totals run_many(const RunOptions& options, std::uint64_t runs, unsigned threads,
                const std::function<void(const Totals&)>& told);

// The same violation with less: without noise, fewer faults and requests, fewer and smaller
// instances. At most `tries` runs.
Failure shrink(const Failure& failure, int tries);

}  // namespace kvl::simulation
