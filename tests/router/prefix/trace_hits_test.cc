// What policy cost makes of a workload: hits against what the same memory could give at best.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <list>
#include <memory>
#include <numeric>
#include <queue>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "router/policy/policy.h"
#include "tools/replay/trace.h"

namespace kvl::router {
namespace {

using replay::Trace;
using replay::TraceRow;

// An exact cache of blocks, least recently used out first, ends of prompts before their beginnings.
class BlockCache {
 public:
  explicit BlockCache(std::size_t blocks) : blocks_(blocks) {}
  // How many blocks from the first are here; all of them are afterwards.
  std::size_t use(const std::vector<std::uint64_t>& ids) {
    std::size_t hits = 0;
    while (hits < ids.size() && places_.contains(ids[hits])) ++hits;
    for (auto id = ids.rbegin(); id != ids.rend(); ++id) {
      if (const auto known = places_.find(*id); known != places_.end()) order_.erase(known->second);
      order_.push_front(*id);
      places_[*id] = order_.begin();
    }
    while (places_.size() > blocks_) {
      places_.erase(order_.back());
      order_.pop_back();
    }
    return hits;
  }

 private:
  const std::size_t blocks_;
  std::list<std::uint64_t> order_;
  std::unordered_map<std::uint64_t, std::list<std::uint64_t>::iterator> places_;
};

// A list of token ids as a client would write it.
std::string ids_of(const TraceRow& row, std::uint32_t block_tokens) {
  std::string out = "[";
  std::uint64_t left = row.input_tokens;
  for (const std::uint64_t block : row.block_ids) {
    std::mt19937_64 random(block);
    for (std::uint32_t i = 0; i < block_tokens && left > 0; ++i, --left) {
      out += std::to_string(random() % 128'000) + ',';
    }
  }
  out.back() = ']';
  return out;
}

struct Setting {
  std::uint32_t workers = 8;
  std::size_t blocks = 0;   // of each worker's cache
  double tokens_per_s = 0;  // that a worker computes
};

struct Played {
  double hits = 0;    // share of prompt tokens that a worker found in its cache
  double mean_s = 0;  // until a prompt was computed
  double p99_s = 0;
};

// The trace in its own time.
Played play(const Trace& trace, const std::vector<PromptKeys>& prompts, const Setting& setting,
            const char* name) {
  PrefixIndex prefixes(setting.blocks * trace.block_tokens);
  SessionTable sessions(1);
  const SteadyClock clock;
  const std::unique_ptr<Policy> policy = *make_policy(
      name,
      {.role = WorkerRole::prefill, .prefixes = prefixes, .sessions = sessions, .clock = clock});
  const std::unique_ptr<Worker[]> workers(new Worker[setting.workers]);
  std::vector<Worker*> candidates;
  std::vector<BlockCache> caches(setting.workers, BlockCache(setting.blocks));
  std::vector<double> free_at(setting.workers, 0);
  for (std::uint32_t i = 0; i < setting.workers; ++i) {
    workers[i].id = i + 1;
    candidates.push_back(&workers[i]);
  }
  struct Job {
    double end;
    std::uint32_t worker;
    std::uint64_t tokens;
    bool operator>(const Job& other) const { return end > other.end; }
  };
  std::priority_queue<Job, std::vector<Job>, std::greater<>> running;
  Random random(1);
  std::uint64_t found = 0, all = 0;
  std::vector<double> waits;
  for (std::size_t i = 0; i < trace.rows.size(); ++i) {
    const TraceRow& row = trace.rows[i];
    for (; !running.empty() && running.top().end <= row.at_s; running.pop()) {
      workers[running.top().worker].in_flight -= 1;
      workers[running.top().worker].prefill_tokens -= running.top().tokens;
    }
    const Choice choice = policy->pick({.prompt = prompts[i]}, candidates, random);
    const std::uint32_t at = choice.worker->id - 1;
    const std::uint64_t hit = std::min<std::uint64_t>(
        caches[at].use(row.block_ids) * trace.block_tokens, row.input_tokens);
    const std::uint64_t charged = prompts[i].tokens() - choice.cached_tokens;
    choice.worker->in_flight += 1;
    choice.worker->prefill_tokens += charged;
    free_at[at] = std::max(free_at[at], row.at_s) +
                  static_cast<double>(row.input_tokens - hit) / setting.tokens_per_s;
    running.push({free_at[at], at, charged});
    waits.push_back(free_at[at] - row.at_s);
    found += hit;
    all += row.input_tokens;
  }
  std::sort(waits.begin(), waits.end());
  return {.hits = static_cast<double>(found) / static_cast<double>(all),
          .mean_s =
              std::accumulate(waits.begin(), waits.end(), 0.0) / static_cast<double>(waits.size()),
          .p99_s = waits[waits.size() * 99 / 100]};
}

// One cache with the memory of all workers.
double best(const Trace& trace, std::size_t blocks) {
  BlockCache cache(blocks);
  std::uint64_t found = 0, all = 0;
  for (const TraceRow& row : trace.rows) {
    found +=
        std::min<std::uint64_t>(cache.use(row.block_ids) * trace.block_tokens, row.input_tokens);
    all += row.input_tokens;
  }
  return static_cast<double>(found) / static_cast<double>(all);
}

// Workers are busy six tenths of the time if nothing hits.
void compare(const Trace& trace, std::size_t blocks) {
  std::vector<PromptKeys> prompts;
  std::uint64_t tokens = 0;
  for (const TraceRow& row : trace.rows) {
    prompts.push_back(prompt_keys(ids_of(row, trace.block_tokens), row.input_tokens));
    tokens += row.input_tokens;
  }
  Setting setting{.blocks = blocks};
  setting.tokens_per_s =
      static_cast<double>(tokens) / trace.rows.back().at_s / setting.workers / 0.6;
  const double ideal = best(trace, blocks * setting.workers);
  const Played cost = play(trace, prompts, setting, "cost");
  const Played robin = play(trace, prompts, setting, "round_robin");
  const Played least = play(trace, prompts, setting, "least_loaded");
  std::printf("%s, %zu blocks a worker; hits of one cache with all memory: %.1f %%\n",
              trace.name.c_str(), blocks, 100 * ideal);
  for (const auto& [name, one] :
       {std::pair("cost", cost), {"round_robin", robin}, {"least_loaded", least}}) {
    std::printf("  %-12s hits %.1f %%, %.3f of it; mean %.2f s, p99 %.2f s\n", name, 100 * one.hits,
                one.hits / ideal, one.mean_s, one.p99_s);
  }
  EXPECT_GE(cost.hits, 0.95 * ideal);
  EXPECT_GT(cost.hits, 1.5 * robin.hits);
  EXPECT_LT(cost.mean_s, least.mean_s);
}

TEST(TraceHits, OfTheBuiltInWorkload) {
  const Trace trace =
      replay::make_workload({.requests = 3000, .requests_per_s = 10, .follow_up = 0.7});
  compare(trace, 512);
  compare(trace, 4096);
}

TEST(TraceHits, OfARecordedTrace) {
  const char* const file = std::getenv("KVL_TEST_TRACE");
  if (file == nullptr) GTEST_SKIP() << "KVL_TEST_TRACE names no trace";
  std::string error;
  const ::kvl::Result<Trace> trace = replay::load_trace(file, 0, &error);
  ASSERT_TRUE(trace.ok()) << error;
  compare(*trace, 2048);
  compare(*trace, 8192);
}

}  // namespace
}  // namespace kvl::router
