// The list of policies by name.
#include "router/policy/policy.h"

namespace kvl::router {

Result<std::unique_ptr<Policy>> make_policy(std::string_view name) {
  if (name == "random") return make_random_policy();
  if (name == "round_robin") return make_round_robin_policy();
  if (name == "least_loaded") return make_least_loaded_policy();
  if (name == "power_of_two") return make_power_of_two_policy();
  return Status{Code::invalid_argument,
                "unknown policy; use random, round_robin, least_loaded or power_of_two"};
}

}  // namespace kvl::router
