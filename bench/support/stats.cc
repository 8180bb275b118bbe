// Percentiles and the bootstrap of a ratio.
#include "bench/support/stats.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kvl::bench {

double percentile_sorted(std::span<const double> sorted, double q) {
  if (sorted.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double rank = std::ceil(q * static_cast<double>(sorted.size()));
  const double last = static_cast<double>(sorted.size() - 1);
  return sorted[static_cast<std::size_t>(std::clamp(rank - 1, 0.0, last))];
}

double percentile(std::span<const double> values, double q) {
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  return percentile_sorted(sorted, q);
}

double median(std::span<const double> values) {
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  if (sorted.empty()) return std::numeric_limits<double>::quiet_NaN();
  const std::size_t half = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

Ratio paired_ratio(std::span<const double> numerator, std::span<const double> denominator,
                   double confidence, std::uint64_t seed) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < std::min(numerator.size(), denominator.size()); ++i) {
    if (numerator[i] > 0 && denominator[i] > 0) ratios.push_back(numerator[i] / denominator[i]);
  }
  Ratio result;
  result.pairs = ratios.size();
  result.value = median(ratios);
  if (ratios.empty()) {
    result.low = result.high = result.value;
    return result;
  }
  constexpr std::size_t kResamples = 2000;
  SplitMix random(seed);
  std::vector<double> medians(kResamples);
  std::vector<double> sample(ratios.size());
  for (double& value : medians) {
    for (double& pick : sample) pick = ratios[random.below(ratios.size())];
    value = median(sample);
  }
  std::sort(medians.begin(), medians.end());
  const double tail = (1 - confidence) / 2;
  result.low = percentile_sorted(medians, tail);
  result.high = percentile_sorted(medians, 1 - tail);
  return result;
}

}  // namespace kvl::bench
