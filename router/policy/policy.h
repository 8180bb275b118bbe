// How one worker is chosen among those that may serve. One file per policy.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string_view>

#include "kvl/status.h"
#include "router/fleet/worker.h"

namespace kvl::router {

using Random = std::mt19937_64;

// Belongs to one loop. `candidates` is never empty; in-flight counts are those of all loops.
class Policy {
 public:
  virtual ~Policy() = default;
  virtual Worker& pick(std::span<Worker* const> candidates, Random& random) = 0;
};

std::unique_ptr<Policy> make_random_policy();
std::unique_ptr<Policy> make_round_robin_policy();
std::unique_ptr<Policy> make_least_loaded_policy();
std::unique_ptr<Policy> make_power_of_two_policy();

// By name: "random", "round_robin", "least_loaded", "power_of_two". invalid_argument.
Result<std::unique_ptr<Policy>> make_policy(std::string_view name);

}  // namespace kvl::router
