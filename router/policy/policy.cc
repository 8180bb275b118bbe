// The list of policies by name.
#include "router/policy/policy.h"

#include <algorithm>
#include <array>

namespace kvl::router {
namespace {

// What sglang-router and vllm-router call them.
struct Alias {
  std::string_view name, policy;
};
constexpr std::array<Alias, 3> kAliases{
    {{"cache_aware", "cost"}, {"kv_aware", "cost"}, {"least_load", "least_loaded"}}};

std::string_view own_name(std::string_view name) {
  const auto alias = std::find_if(kAliases.begin(), kAliases.end(),
                                  [&](const Alias& known) { return known.name == name; });
  return alias == kAliases.end() ? name : alias->policy;
}

}  // namespace

bool wants_prompts(std::string_view name) { return own_name(name) == "cost"; }

Result<std::unique_ptr<Policy>> make_policy(std::string_view name, WorkerRole role,
                                            PrefixIndex* prefixes) {
  const std::string_view own = own_name(name);
  if (own == "cost") return make_cost_policy(role, *prefixes);
  if (own == "random") return make_random_policy();
  if (own == "round_robin") return make_round_robin_policy();
  if (own == "least_loaded") return make_least_loaded_policy();
  if (own == "power_of_two") return make_power_of_two_policy();
  return Status{Code::invalid_argument,
                "unknown policy; use cost, random, round_robin, least_loaded or power_of_two"};
}

}  // namespace kvl::router
