// The less loaded of two random workers: nearly as even as looking at all, without herding.
#include "router/policy/policy.h"

namespace kvl::router {
namespace {

class PowerOfTwoPolicy final : public Policy {
 public:
  Choice pick(const Ask&, std::span<Worker* const> candidates, Random& random) override {
    const std::size_t count = candidates.size();
    const std::size_t one = random() % count;
    if (count == 1) return *candidates[one];
    const std::size_t other = (one + 1 + random() % (count - 1)) % count;
    return *candidates[candidates[one]->in_flight <= candidates[other]->in_flight ? one : other];
  }
};

}  // namespace

std::unique_ptr<Policy> make_power_of_two_policy() { return std::make_unique<PowerOfTwoPolicy>(); }

}  // namespace kvl::router
