// Seeds that once found a bug in the product, and the bug. Putting it back is a mutation in
// tests/mutations of the same name, so it stays proven that they would find it again.
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
};

}  // namespace kvl::simulation
