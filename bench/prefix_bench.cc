// What does prefix-aware routing cost? One choice of policy cost, with its lookup and its note in
// the index, among W workers; the memory of the index for each byte of prompts that share nothing.
// To reach: 20,000 choices a second with 1,000 workers and prompts of 8k tokens (32 KiB of text),
// 0.02 bytes of index a byte of prompt.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "router/policy/policy.h"

namespace kvl::router {
namespace {

constexpr std::size_t kPromptBytes = 32 << 10;
constexpr std::size_t kPrompts = 4096;  // different ones, in groups that share three quarters
constexpr std::size_t kGroups = 256;

std::vector<std::string> prompts() {
  std::mt19937_64 random(1);
  const auto text = [&](std::size_t bytes) {
    std::string out(bytes, ' ');
    for (char& c : out) c = static_cast<char>('a' + random() % 26);
    return out;
  };
  const std::string system = text(2048);  // all of them share it
  std::vector<std::string> stems, all;
  for (std::size_t i = 0; i < kGroups; ++i) stems.push_back(system + text(kPromptBytes * 3 / 4));
  for (std::size_t i = 0; i < kPrompts; ++i) {
    std::string one = stems[random() % kGroups];
    one += text(kPromptBytes - one.size());
    all.push_back(std::move(one));
  }
  return all;
}

void choose(benchmark::State& state) {
  static const std::vector<std::string> all = prompts();
  const auto count = static_cast<std::uint32_t>(state.range(0));
  const std::unique_ptr<Worker[]> workers(new Worker[count]);
  std::vector<Worker*> candidates;
  for (std::uint32_t i = 0; i < count; ++i) {
    workers[i].id = i + 1;
    candidates.push_back(&workers[i]);
  }
  PrefixIndex prefixes(1 << 20);
  const std::unique_ptr<Policy> policy = make_cost_policy(WorkerRole::prefill, prefixes);
  Random random(2);
  std::uint64_t cached = 0, asked = 0;
  for (auto _ : state) {
    const PromptKeys prompt = prompt_keys(all[random() % kPrompts], 0);
    // Some load, so that not everything goes to one worker.
    candidates[random() % count]->prefill_tokens = random() % 20'000;
    const Choice choice = policy->pick({.prompt = prompt}, candidates, random);
    cached += choice.cached_tokens;
    asked += prompt.tokens();
  }
  state.counters["choices/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
  state.counters["cached"] = static_cast<double>(cached) / static_cast<double>(asked);
}
BENCHMARK(choose)->Arg(1)->Arg(8)->Arg(100)->Arg(1000)->Arg(4000)->Unit(benchmark::kMicrosecond);

void memory(benchmark::State& state) {
  const auto bytes = static_cast<std::size_t>(state.range(0));
  double per_byte = 0;
  for (auto _ : state) {
    PrefixIndex prefixes(UINT64_MAX);
    constexpr int kCount = 20'000;
    std::string text(bytes, 'x');
    for (int i = 0; i < kCount; ++i) {
      text.replace(0, 8, std::to_string(10'000'000 + i));
      prefixes.insert(prompt_keys(text, 0), static_cast<std::uint32_t>(1 + i % 8));
    }
    per_byte = static_cast<double>(prefixes.size().memory_bytes) /
               (static_cast<double>(kCount) * static_cast<double>(bytes));
  }
  state.counters["index_bytes/byte"] = per_byte;
}
BENCHMARK(memory)->Arg(4 << 10)->Arg(16 << 10)->Arg(64 << 10)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace kvl::router

BENCHMARK_MAIN();
