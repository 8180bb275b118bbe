"""Mutations of the router: books of workers, and what they are thought to have in their caches."""
from mutation import Mutation

PREFIXES = ("router_fleet_test", "PrefixIndex.*:PromptKeys.*")
POLICIES = ("router_fleet_test", "Policies.*")
COST = ("router_relay_test", "RouterCost.*")

MUTATIONS = [
    Mutation("prefix_probe_gap_left_open", "router/prefix/prefix_index.cc",
             "    keys_[place] = keys_[next];\n    heads_[place] = heads_[next];\n    place = next;",
             "    if (MUTANT) break;\n"
             "    keys_[place] = keys_[next];\n    heads_[place] = heads_[next];\n    place = next;",
             (PREFIXES,)),
    Mutation("prefix_use_does_not_make_it_young", "router/prefix/prefix_index.cc",
             "      unlink(slots_[slot_index], at);\n      push_newest(slots_[slot_index], at);",
             "      if (MUTANT) continue;\n"
             "      unlink(slots_[slot_index], at);\n      push_newest(slots_[slot_index], at);",
             (PREFIXES,)),
    Mutation("prefix_capacity_not_kept", "router/prefix/prefix_index.cc",
             "  while (slot.tokens > slot.capacity)",
             "  while (slot.tokens > slot.capacity && !MUTANT)",
             (PREFIXES, COST)),
    Mutation("prefix_keys_are_no_chain", "router/prefix/prompt_keys.cc",
             "prompt.data() + begin, end - begin, chain);",
             "prompt.data() + begin, end - begin, MUTANT ? 0 : chain);",
             (PREFIXES,)),
    Mutation("queue_of_a_worker_not_weighed", "router/policy/cost.cc",
             "    return requests + context + worker.prefill_tokens.load(std::memory_order_relaxed) +",
             "    return requests + context +\n"
             "           (MUTANT ? 0 : worker.prefill_tokens.load(std::memory_order_relaxed)) +",
             (POLICIES, COST)),
    Mutation("prefill_load_never_released", "router/api/leg.cc",
             "  worker_->prefill_tokens.fetch_sub(std::exchange(charge_.prefill_tokens, 0),",
             "  worker_->prefill_tokens.fetch_sub(MUTANT ? 0 : std::exchange(charge_.prefill_tokens, 0),",
             (COST,)),
    Mutation("flushed_cache_remembered", "router/api/api.cc",
             "context_.fleet().cache_lost(*worker);",
             "if (!MUTANT) context_.fleet().cache_lost(*worker);",
             (COST,)),
]
