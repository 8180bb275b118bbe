// By the prompt's length: short ones do not wait behind long ones. Boundaries are such that each
// worker gets an equal share of the tokens, as seen in the last prompts of this loop.
#include <algorithm>
#include <array>

#include "router/policy/policy.h"

namespace kvl::router {
namespace {

constexpr std::size_t kWindow = 1024;      // prompts that boundaries are made from
constexpr std::size_t kBetweenSorts = 64;  // prompts until they are made anew

class BucketPolicy final : public Policy {
 public:
  BucketPolicy() : fallback_(make_least_loaded_policy()) {}

  Choice pick(const Ask& ask, std::span<Worker* const> candidates, Random& random) override {
    const std::uint64_t length = ask.prompt.tokens();
    if (length == 0) return fallback_->pick(ask, candidates, random);
    if (seen_ % kBetweenSorts == 0) sort();
    lengths_[seen_++ % kWindow] = length;
    if (sorted_.empty()) return fallback_->pick(ask, candidates, random);
    // Which share of all tokens is in prompts that are shorter.
    const auto shorter = std::lower_bound(sorted_.begin(), sorted_.end(), length);
    const double share = sums_[static_cast<std::size_t>(shorter - sorted_.begin())] / sums_.back();
    const auto bucket = static_cast<std::size_t>(share * static_cast<double>(candidates.size()));
    return *candidates[std::min(bucket, candidates.size() - 1)];
  }

 private:
  void sort() {
    const std::size_t count = std::min(seen_, kWindow);
    sorted_.assign(lengths_.begin(), lengths_.begin() + static_cast<std::ptrdiff_t>(count));
    std::sort(sorted_.begin(), sorted_.end());
    sums_.assign(1, 0);
    for (const std::uint64_t length : sorted_) {
      sums_.push_back(sums_.back() + static_cast<double>(length));
    }
  }

  const std::unique_ptr<Policy> fallback_;
  std::array<std::uint64_t, kWindow> lengths_{};
  std::size_t seen_ = 0;
  std::vector<std::uint64_t> sorted_;
  std::vector<double> sums_;  // of those before
};

}  // namespace

std::unique_ptr<Policy> make_bucket_policy() { return std::make_unique<BucketPolicy>(); }

}  // namespace kvl::router
