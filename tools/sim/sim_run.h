// One seeded run of N engines over the simulated network, in virtual time, with faults, checked
// after every step. The engines, rails and control code are the product's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvl::simulation {

struct RunOptions {
  std::uint64_t seed = 1;
  std::uint32_t engines = 3;
  std::uint32_t devices = 2;     // rails per engine
  std::uint32_t transfers = 80;  // submitted in all
  bool faults = true;            // drops, partitions, clogs, dead devices, crashes
  bool trace = false;
};

struct RunReport {
  bool ok = false;
  std::string violation;     // what was wrong; "" when ok
  std::uint64_t digest = 0;  // equal for equal options: the run can be replayed
  std::uint64_t steps = 0;
  std::int64_t virtual_ns = 0;
  std::uint32_t done = 0, failed = 0, quarantined = 0, crashes = 0;
  std::vector<std::string> trace;
};

// Checked: every accepted transfer ends exactly once and within its deadline plus the engine's
// grace; ok means that every byte is in place; once a transfer is quiescent nothing writes its
// destination any more; bytes outside destinations never change; at the end no transfer is left.
RunReport run(const RunOptions& options);

}  // namespace kvl::simulation
