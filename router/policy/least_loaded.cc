// The worker with the fewest requests in flight; among equals a random one, so that several routers
// (or loops) do not march in step.
#include "router/policy/policy.h"

namespace kvl::router {
namespace {

class LeastLoadedPolicy final : public Policy {
 public:
  Choice pick(const Ask&, std::span<Worker* const> candidates, Random& random) override {
    Worker* best = nullptr;
    std::uint32_t best_load = 0;
    std::uint32_t equals = 0;  // workers seen with best_load
    for (Worker* const worker : candidates) {
      const std::uint32_t load = worker->in_flight.load(std::memory_order_relaxed);
      if (best != nullptr && load > best_load) continue;
      equals = best != nullptr && load == best_load ? equals + 1 : 1;
      best_load = load;
      if (random() % equals == 0) best = worker;
    }
    return *best;
  }
};

}  // namespace

std::unique_ptr<Policy> make_least_loaded_policy() { return std::make_unique<LeastLoadedPolicy>(); }

}  // namespace kvl::router
