// The index against a plain model of it, and what the keys of prompts promise.
#include "router/prefix/prefix_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <random>
#include <string>

namespace kvl::router {
namespace {

TEST(PromptKeys, EqualPrefixesHaveEqualKeysAndNothingElse) {
  std::string one(20'000, 'x'), other = one;
  other[9'000] = 'y';
  const PromptKeys a = prompt_keys(one, 0), b = prompt_keys(other, 0);
  ASSERT_EQ(a.keys.size(), b.keys.size());
  for (std::size_t i = 0; i < a.keys.size(); ++i) {
    EXPECT_EQ(a.keys[i] == b.keys[i], prefix_bytes(i) <= 9'000) << i;
  }
  const PromptKeys shorter = prompt_keys(one.substr(0, 10'000), 0);
  EXPECT_TRUE(std::equal(shorter.keys.begin(), shorter.keys.end(), a.keys.begin()));
}

TEST(PromptKeys, PrefixesGrowToStepsOfFourKiB) {
  EXPECT_EQ(prefix_bytes(0), 512u);
  EXPECT_EQ(prefix_bytes(3), 4096u);
  EXPECT_EQ(prefix_bytes(4), 8192u);
  for (std::size_t i = 4; i < kPrefixesMax; ++i) {
    ASSERT_EQ(prefix_bytes(i) - prefix_bytes(i - 1), 4096u);
  }
  EXPECT_TRUE(prompt_keys(std::string(511, 'x'), 0).keys.empty());
  EXPECT_EQ(prompt_keys(std::string(512, 'x'), 0).keys.size(), 1u);
  EXPECT_EQ(prompt_keys(std::string(5 << 20, 'x'), 0).keys.size(), kPrefixesMax);
}

TEST(PromptKeys, TokensAreAQuarterOfTheTextOrWhatTheIdsAre) {
  EXPECT_EQ(prompt_keys(std::string(8192, 'x'), 0).tokens(), 2048u);
  const PromptKeys ids = prompt_keys(std::string(8192, '1'), 1024);
  EXPECT_EQ(ids.tokens(), 1024u);
  EXPECT_EQ(ids.cached_tokens(4), 512u);  // 4 KiB of it
  EXPECT_EQ(ids.cached_tokens(0), 0u);
  EXPECT_EQ(prompt_keys("", 0).tokens(), 0u);
}

// The same by plain means: for each worker a list of (prefix, tokens), latest first.
class Model {
 public:
  explicit Model(std::uint64_t capacity) : capacity_(capacity) {}
  void insert(const PromptKeys& prompt, std::uint32_t worker) {
    std::list<Entry>& cache = caches_[worker];
    for (std::size_t i = prompt.keys.size(); i > 0; --i) {
      const std::uint64_t key = prompt.keys[i - 1];
      const std::uint64_t tokens = prompt.cached_tokens(i) - prompt.cached_tokens(i - 1);
      std::erase_if(cache, [&](const Entry& entry) { return entry.first == key; });
      cache.emplace_front(key, tokens);
    }
    trim(worker);
  }
  void set_capacity(std::uint32_t worker, std::uint64_t tokens) {
    capacities_[worker] = tokens;
    trim(worker);
  }
  void forget(std::uint32_t worker) { caches_[worker].clear(); }
  void remove(std::uint32_t worker) {
    caches_.erase(worker);
    capacities_.erase(worker);
  }
  std::uint64_t tokens(std::uint32_t worker) const {
    std::uint64_t sum = 0;
    const auto cache = caches_.find(worker);
    if (cache == caches_.end()) return 0;
    for (const Entry& entry : cache->second) sum += entry.second;
    return sum;
  }
  std::map<std::uint32_t, std::uint32_t> match(const PromptKeys& prompt) const {
    std::map<std::uint32_t, std::uint32_t> out;
    for (const auto& [worker, cache] : caches_) {
      for (std::uint32_t depth = 1; depth <= prompt.keys.size(); ++depth) {
        const bool has = std::any_of(cache.begin(), cache.end(), [&](const Entry& entry) {
          return entry.first == prompt.keys[depth - 1];
        });
        if (has) out[worker] = depth;
      }
    }
    return out;
  }

 private:
  using Entry = std::pair<std::uint64_t, std::uint64_t>;
  void trim(std::uint32_t worker) {
    const auto own = capacities_.find(worker);
    const std::uint64_t capacity = own == capacities_.end() ? capacity_ : own->second;
    while (tokens(worker) > capacity) caches_[worker].pop_back();
  }
  const std::uint64_t capacity_;
  std::map<std::uint32_t, std::list<Entry>> caches_;
  std::map<std::uint32_t, std::uint64_t> capacities_;
};

std::map<std::uint32_t, std::uint32_t> match(const PrefixIndex& index, const PromptKeys& prompt) {
  std::vector<PrefixMatch> found;
  index.match(prompt, found);
  std::map<std::uint32_t, std::uint32_t> out;
  std::uint32_t before = UINT32_MAX;
  for (const PrefixMatch& one : found) {
    EXPECT_LE(one.depth, before) << "deepest first";
    before = one.depth;
    EXPECT_TRUE(out.emplace(one.worker, one.depth).second) << "each worker once";
  }
  return out;
}

TEST(PrefixIndex, IsWhatAPlainModelIs) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  constexpr std::uint64_t kCapacity = 40'000;
  PrefixIndex index(kCapacity);
  Model model(kCapacity);
  std::vector<std::string> stems;
  for (char c = 'a'; c < 'i'; ++c) stems.push_back(std::string(random() % 30'000, c));
  const auto prompt = [&] {
    std::string text = stems[random() % stems.size()].substr(0, random() % 30'000);
    text += std::string(random() % 30'000, static_cast<char>('A' + random() % 4));
    return prompt_keys(text, 0);
  };
  for (int step = 0; step < 3000; ++step) {
    const auto worker = static_cast<std::uint32_t>(1 + random() % 6);
    switch (random() % 40) {
      case 0:
        index.forget(worker);
        model.forget(worker);
        break;
      case 1:
        index.remove(worker);
        model.remove(worker);
        break;
      case 2: {
        const std::uint64_t capacity = 1 + random() % 60'000;
        index.set_capacity(worker, capacity);
        model.set_capacity(worker, capacity);
        break;
      }
      default: {
        const PromptKeys keys = prompt();
        index.insert(keys, worker);
        model.insert(keys, worker);
      }
    }
    const PromptKeys asked = prompt();
    ASSERT_EQ(match(index, asked), model.match(asked)) << "step " << step;
    ASSERT_EQ(index.tokens(worker), model.tokens(worker)) << "step " << step;
  }
  for (std::uint32_t worker = 1; worker <= 6; ++worker) index.remove(worker);
  EXPECT_EQ(index.size().prefixes, 0u);
  EXPECT_EQ(index.size().holdings, 0u);
}

TEST(PrefixIndex, OfVeryManyHoldersTheLatestAreSeen) {
  PrefixIndex index(1 << 20);
  const PromptKeys prompt = prompt_keys(std::string(600, 'x'), 0);
  for (std::uint32_t worker = 1; worker <= 2000; ++worker) index.insert(prompt, worker);
  const auto found = match(index, prompt);
  EXPECT_EQ(found.size(), PrefixIndex::kHoldersMax);
  EXPECT_EQ(found.rbegin()->first, 2000u);
}

// 16 KiB prompts that share nothing.
TEST(PrefixIndex, TakesAboutFortyBytesAPrefix) {
  PrefixIndex index(1ull << 40);
  std::uint64_t bytes = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string text(16 << 10, 'x');
    text.replace(0, 8, std::to_string(10'000'000 + i));
    index.insert(prompt_keys(text, 0), 1);
    bytes += text.size();
  }
  EXPECT_LT(static_cast<double>(index.size().memory_bytes) / static_cast<double>(bytes), 0.025);
}

}  // namespace
}  // namespace kvl::router
