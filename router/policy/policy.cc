// The list of policies by name.
#include "router/policy/policy.h"

#include <algorithm>
#include <array>

namespace kvl::router {
namespace {

using Make = std::unique_ptr<Policy> (*)(const PolicyParts&);

struct Row {
  std::string_view name;
  bool prompts, sessions;  // what it looks at
  Make make;
};
constexpr std::array<Row, 9> kPolicies{{
    {"cost", true, false,
     [](const PolicyParts& p) { return make_cost_policy(p.role, p.prefixes); }},
    {"random", false, false, [](const PolicyParts&) { return make_random_policy(); }},
    {"round_robin", false, false, [](const PolicyParts&) { return make_round_robin_policy(); }},
    {"least_loaded", false, false, [](const PolicyParts&) { return make_least_loaded_policy(); }},
    {"power_of_two", false, false, [](const PolicyParts&) { return make_power_of_two_policy(); }},
    {"consistent_hashing", true, true,
     [](const PolicyParts&) { return make_consistent_hashing_policy(); }},
    {"prefix_hash", true, false, [](const PolicyParts&) { return make_prefix_hash_policy(); }},
    {"manual", false, true,
     [](const PolicyParts& p) { return make_manual_policy(p.sessions, p.clock); }},
    {"bucket", true, false, [](const PolicyParts&) { return make_bucket_policy(); }},
}};

// What sglang-router and vllm-router call them.
struct Alias {
  std::string_view name, policy;
};
constexpr std::array<Alias, 5> kAliases{{{"cache_aware", "cost"},
                                         {"kv_aware", "cost"},
                                         {"least_load", "least_loaded"},
                                         {"consistent_hash", "consistent_hashing"},
                                         {"session", "manual"}}};

const Row* find(std::string_view name) {
  const auto* const alias = std::find_if(kAliases.begin(), kAliases.end(),
                                         [&](const Alias& known) { return known.name == name; });
  if (alias != kAliases.end()) name = alias->policy;
  const auto* const row = std::find_if(kPolicies.begin(), kPolicies.end(),
                                       [&](const Row& known) { return known.name == name; });
  return row == kPolicies.end() ? nullptr : row;
}

}  // namespace

bool wants_prompts(std::string_view name) {
  const Row* const row = find(name);
  return row != nullptr && row->prompts;
}

bool wants_sessions(std::string_view name) {
  const Row* const row = find(name);
  return row != nullptr && row->sessions;
}

Result<std::unique_ptr<Policy>> make_policy(std::string_view name, const PolicyParts& parts) {
  if (const Row* const row = find(name)) return row->make(parts);
  return Status{Code::invalid_argument,
                "unknown policy; use cost, random, round_robin, least_loaded, power_of_two, "
                "consistent_hashing, prefix_hash, manual or bucket"};
}

}  // namespace kvl::router
