// Numbers of repeated measurements: percentiles, and a ratio with its confidence interval.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvl::bench {

// q in [0, 1] of the values, by the nearest rank. NaN when there are none. `percentile` sorts a
// copy; use `percentile_sorted` for several of one sample.
double percentile_sorted(std::span<const double> sorted, double q);
double percentile(std::span<const double> values, double q);
double median(std::span<const double> values);

struct Ratio {
  double value = 0;  // median of the ratios of pairs
  double low = 0;    // confidence interval by bootstrap
  double high = 0;
  std::size_t pairs = 0;

  // The interval lies on one side of 1: the difference is more than noise.
  bool distinct() const { return pairs > 1 && (low > 1 || high < 1); }
};

// Of numerator[i] / denominator[i], which were measured one right after the other, so that a drift
// of the machine's speed divides out. Pairs with a zero are left out. `confidence` in (0, 1).
// The result is the same for the same input and seed.
Ratio paired_ratio(std::span<const double> numerator, std::span<const double> denominator,
                   double confidence = 0.95, std::uint64_t seed = 1);

// A reproducible stream of 64-bit numbers (SplitMix64, Steele, Lea, Flood 2014).
class SplitMix {
 public:
  explicit SplitMix(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() { return mix(state_ += 0x9e3779b97f4a7c15U); }
  // Below `bound`, > 0. The bias of the multiplication is far below what a benchmark can see.
  std::uint64_t below(std::uint64_t bound) {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
  }
  static constexpr std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t state_;
};

}  // namespace kvl::bench
