// From logits to the next token.
#include "worker/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "worker/mix.h"

namespace kvl::worker {
namespace {

// The token where the running sum of tempered probabilities passes a uniform draw, among the
// top_k most likely ones and the shortest head of them that holds top_p.
std::size_t draw(std::span<const float> logits, const SamplingParams& params, double uniform) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  if (params.top_k != 0 && params.top_k < order.size()) order.resize(params.top_k);
  std::vector<double> weights;
  weights.reserve(order.size());
  double total = 0;
  for (const std::size_t token : order) {
    const double scaled = double{logits[token]} - double{logits[order[0]]};
    weights.push_back(std::exp(scaled / double{params.temperature}));
    total += weights.back();
  }
  std::size_t kept = 0;
  double kept_weight = 0;
  while (kept < order.size() && kept_weight < total * double{params.top_p}) {
    kept_weight += weights[kept++];
  }
  double left = uniform * kept_weight;
  for (std::size_t i = 0; i + 1 < kept; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[kept == 0 ? 0 : kept - 1];
}

}  // namespace

Sampled sample(std::span<const float> logits, const SamplingParams& params, std::uint32_t index) {
  const auto best =
      static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  std::size_t token = best;
  if (params.temperature > 0.0F) {
    const std::uint64_t bits = mix64(mix64(params.seed) + index) >> 11;
    token = draw(logits, params, static_cast<double>(bits) * 0x1p-53);
  }
  double total = 0;
  for (const float logit : logits) total += std::exp(double{logit} - double{logits[best]});
  const double logprob = double{logits[token]} - double{logits[best]} - std::log(total);
  return {static_cast<std::int32_t>(token), static_cast<float>(logprob)};
}

std::uint64_t digest(std::span<const float> logits) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const float logit : logits) {
    const auto bits = std::bit_cast<std::uint32_t>(logit);
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ ((bits >> shift) & 0xffU)) * 0x100000001b3ULL;
    }
  }
  return hash;
}

}  // namespace kvl::worker
