// Any worker, each as likely.
#include "router/policy/policy.h"

namespace kvl::router {
namespace {

class RandomPolicy final : public Policy {
 public:
  Choice pick(const Ask&, std::span<Worker* const> candidates, Random& random) override {
    return *candidates[random() % candidates.size()];
  }
};

}  // namespace

std::unique_ptr<Policy> make_random_policy() { return std::make_unique<RandomPolicy>(); }

}  // namespace kvl::router
