// Seeds that once found a bug in the product, and the bug. Where a mutation in tests/mutations puts
// it back, its name stands here.
#pragma once

#include <cstdint>

namespace kvl::simulation {

struct Regression {
  std::uint64_t seed;
  const char* mutation;
  const char* bug;
};

inline constexpr Regression kRegressions[] = {
    {3, "early_accept_outlives_its_abort",
     "decode's abort for a room that prefill had not opened was answered with quiet, but the kept "
     "accept was still acted upon: prefill wrote into pages that had been given back"},
    {1054, "",
     "a write lost on a process_exit Link was never proven: after a reconnect between living "
     "processes decode's pages stayed in quarantine for ever"},
    {1244, "", "the same, with a peer that was given up while stuck inside our memory"},
    {5000559, "",
     "prefill would not vouch for an attempt with one decode rank because a write of the same room "
     "to "
     "another rank had been unproven: the first rank's pages stayed in quarantine for ever"},
    {5011427, "",
     "the proof that a lost write cannot land came after its transfer had ended quarantined, and "
     "was "
     "dropped: decode's pages stayed in quarantine until prefill ended"},
    {5026478, "",
     "the checkers' own: a read that its reader had given up came late to a page that was free "
     "again; "
     "nobody took the answer"},
};

}  // namespace kvl::simulation
