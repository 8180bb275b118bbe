// A model with its ranks and pages, driven by hand: no scheduler, no network.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "worker/sampler.h"
#include "worker/thread_ranks.h"
#include "worker/tokenizer.h"

namespace kvl::worker::test {

struct RigOptions {
  std::uint32_t tp = 1;
  std::uint32_t pp = 1;
  LayoutOptions layout{.page_tokens = 16, .page_count = 16};
  Dtype dtype = Dtype::f32;
  std::uint64_t weights_seed = 7;
  std::uint64_t pages_seed = 1;  // 0: pages in order
};

struct Output {
  std::vector<std::int32_t> tokens;
  std::vector<std::vector<float>> logits;
  friend bool operator==(const Output&, const Output&) = default;
};

class Rig {
 public:
  explicit Rig(const RigOptions& options, std::string_view name = "demo") : options_(options) {
    ModelConfig model = *find_model(name);
    model.kv.dtype = options.dtype;
    std::vector<PagedKv> caches;
    for (std::uint32_t i = 0; i < options.tp * options.pp; ++i) {
      const ParallelSlice slice{options.tp, i % options.tp, options.pp, i / options.tp};
      Result<PageLayout> layout = make_layout(model.kv, slice, options.layout);
      EXPECT_TRUE(layout.ok()) << layout.status().to_string();
      std::vector<std::span<std::byte>> regions;
      for (std::uint32_t r = 0; r < layout->region_count(); ++r) {
        memory_.emplace_back(layout->region_bytes(r));
        regions.emplace_back(memory_.back());
      }
      caches.push_back(*PagedKv::create(*layout, std::move(regions)));
    }
    caches_ = caches;
    pages_.resize(options.layout.page_count);
    std::iota(pages_.begin(), pages_.end(), 0U);
    if (options.pages_seed != 0) {
      std::shuffle(pages_.begin(), pages_.end(), std::mt19937_64(options.pages_seed));
    }
    Result<std::unique_ptr<ThreadRanks>> ranks =
        ThreadRanks::open(model, options.tp, options.pp, options.weights_seed, std::move(caches));
    EXPECT_TRUE(ranks.ok()) << ranks.status().to_string();
    ranks_ = *std::move(ranks);
  }

  // Puts tokens[from..] into the cache, `chunk` at a time; the logits of the last one.
  std::vector<float> prefill(const std::vector<std::int32_t>& tokens, std::size_t from,
                             std::size_t chunk) {
    Logits logits;
    for (std::size_t at = from; at < tokens.size(); at += chunk) {
      const std::size_t end = std::min(tokens.size(), at + chunk);
      const auto begin = tokens.begin();
      Segment segment{
          {begin + static_cast<std::ptrdiff_t>(at), begin + static_cast<std::ptrdiff_t>(end)},
          static_cast<std::uint32_t>(at),
          pages_,
          true};
      Result<Logits> result = ranks_->forward({std::move(segment)});
      EXPECT_TRUE(result.ok()) << result.status().to_string();
      logits = *std::move(result);
    }
    return logits.at(0);
  }

  // Greedy continuation, given the logits after the prompt.
  Output decode(std::vector<std::int32_t> tokens, std::vector<float> logits, std::size_t count) {
    Output output;
    for (std::size_t i = 0; i < count; ++i) {
      output.logits.push_back(logits);
      output.tokens.push_back(sample(logits, {}, static_cast<std::uint32_t>(i)).token);
      tokens.push_back(output.tokens.back());
      if (i + 1 < count) logits = prefill(tokens, tokens.size() - 1, 1);
    }
    return output;
  }

  Output generate(const std::vector<std::int32_t>& prompt, std::size_t count,
                  std::size_t chunk = 1000) {
    return decode(prompt, prefill(prompt, 0, chunk), count);
  }

  const std::vector<PagedKv>& caches() const { return caches_; }
  const std::vector<std::uint32_t>& pages() const { return pages_; }
  ThreadRanks& ranks() { return *ranks_; }

 private:
  RigOptions options_;
  std::deque<std::vector<std::byte>> memory_;
  std::vector<PagedKv> caches_;
  std::vector<std::uint32_t> pages_;
  std::unique_ptr<ThreadRanks> ranks_;
};

}  // namespace kvl::worker::test
