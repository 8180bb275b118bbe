// One session, one worker, by nothing but a hash of both (rendezvous hashing): every router and
// every loop agrees without a word, and a worker that comes or goes moves only its own share.
// Without a session the beginning of the prompt stands for it.
#include "router/policy/policy.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvl::router {
namespace {

// The highest hash of key and worker wins.
Worker& owner_of(std::uint64_t key, std::span<Worker* const> candidates) {
  Worker* best = nullptr;
  std::uint64_t highest = 0;
  for (Worker* const worker : candidates) {
    const std::uint64_t hash =
        XXH3_64bits_withSeed(worker->address.data(), worker->address.size(), key);
    if (best != nullptr && hash <= highest) continue;
    highest = hash;
    best = worker;
  }
  return *best;
}

class ConsistentHashingPolicy final : public Policy {
 public:
  Choice pick(const Ask& ask, std::span<Worker* const> candidates, Random& random) override {
    if (!ask.session.empty()) {
      return owner_of(XXH3_64bits(ask.session.data(), ask.session.size()), candidates);
    }
    if (!ask.prompt.keys.empty()) return owner_of(ask.prompt.keys.front(), candidates);
    return *candidates[random() % candidates.size()];
  }
};

// As above by the prompt alone, but nobody gets more than a quarter above the mean: the next in the
// order of hashes does.
class PrefixHashPolicy final : public Policy {
 public:
  Choice pick(const Ask& ask, std::span<Worker* const> candidates, Random& random) override {
    std::uint64_t in_flight = 1;
    for (const Worker* const worker : candidates) in_flight += worker->in_flight;
    const double most =
        1.25 * static_cast<double>(in_flight) / static_cast<double>(candidates.size());
    light_.clear();
    for (Worker* const worker : candidates) {
      if (static_cast<double>(worker->in_flight) < most) light_.push_back(worker);
    }
    if (ask.prompt.keys.empty()) return *light_[random() % light_.size()];
    return owner_of(ask.prompt.keys.front(), light_);
  }

 private:
  std::vector<Worker*> light_;  // never empty: somebody is below the mean
};

}  // namespace

std::unique_ptr<Policy> make_consistent_hashing_policy() {
  return std::make_unique<ConsistentHashingPolicy>();
}

std::unique_ptr<Policy> make_prefix_hash_policy() { return std::make_unique<PrefixHashPolicy>(); }

}  // namespace kvl::router
