// How one worker is chosen among those that may serve. One file per policy.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string_view>

#include "kvl/clock.h"
#include "kvl/status.h"
#include "router/fleet/worker.h"
#include "router/policy/session_table.h"
#include "router/prefix/prefix_index.h"

namespace kvl::router {

using Random = std::mt19937_64;

// What a policy may know of the request. A prompt that nobody looked at has no keys and no bytes.
struct Ask {
  const PromptKeys& prompt;
  std::string_view session = {};  // what the client calls its conversation; "": it says nothing
};

struct Choice {
  Choice(Worker& chosen) : worker(&chosen) {}
  Worker* worker;
  std::uint64_t cached_tokens = 0;  // of the prompt, that the worker is thought to have
};

// Belongs to one loop. `candidates` is never empty, in order of id; in-flight counts are those of
// all loops.
class Policy {
 public:
  virtual ~Policy() = default;
  virtual Choice pick(const Ask& ask, std::span<Worker* const> candidates, Random& random) = 0;
};

std::unique_ptr<Policy> make_random_policy();
std::unique_ptr<Policy> make_round_robin_policy();
std::unique_ptr<Policy> make_least_loaded_policy();
std::unique_ptr<Policy> make_power_of_two_policy();
std::unique_ptr<Policy> make_cost_policy(WorkerRole role, PrefixIndex& prefixes);

std::unique_ptr<Policy> make_consistent_hashing_policy();
std::unique_ptr<Policy> make_prefix_hash_policy();
std::unique_ptr<Policy> make_manual_policy(SessionTable& sessions, const Clock& clock);
std::unique_ptr<Policy> make_bucket_policy();

// What the policies of all loops share for one role.
struct PolicyParts {
  WorkerRole role;
  PrefixIndex& prefixes;
  SessionTable& sessions;
  const Clock& clock;
};

// A policy by this name looks at prompts, or at sessions.
bool wants_prompts(std::string_view name);
bool wants_sessions(std::string_view name);
// By name: "cost", "random", "round_robin", "least_loaded", "power_of_two", "consistent_hashing",
// "prefix_hash", "manual", "bucket", or what sglang-router and vllm-router call them.
// invalid_argument.
Result<std::unique_ptr<Policy>> make_policy(std::string_view name, const PolicyParts& parts);

}  // namespace kvl::router
