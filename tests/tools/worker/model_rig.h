// A model with its ranks and pages, driven by hand: no scheduler, no network.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "kvl/transfer_plan.h"
#include "worker/rank_threads.h"
#include "worker/sampler.h"
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
    vocab_ = model.vocab;
    std::vector<RankPlace> places;
    for (std::uint32_t i = 0; i < options.tp * options.pp; ++i) {
      const ParallelSlice slice = slice_at(options.tp, options.pp, i);
      Result<PageLayout> layout = make_layout(model.kv, slice, options.layout);
      EXPECT_TRUE(layout.ok()) << layout.status().to_string();
      std::vector<std::span<std::byte>> regions;
      for (std::uint32_t r = 0; r < layout->region_count(); ++r) {
        memory_.emplace_back(layout->region_bytes(r));
        regions.emplace_back(memory_.back());
      }
      caches_.push_back(*PagedKv::create(*layout, std::move(regions)));
      places.push_back({i, caches_.back(), &fabric_.end(slice.tp_rank, slice.pp_rank)});
    }
    pages_.resize(options.layout.page_count);
    std::iota(pages_.begin(), pages_.end(), 0U);
    if (options.pages_seed != 0) {
      std::shuffle(pages_.begin(), pages_.end(), std::mt19937_64(options.pages_seed));
    }
    RankThreadsOptions threads{.model = model, .seed = options.weights_seed};
    threads.on_output = [this](RankOutput output) {
      const std::lock_guard lock(mutex_);
      outputs_.push_back(std::move(output));
      arrived_.notify_one();
    };
    threads.on_layer = [this](std::uint32_t rank, std::uint64_t, std::uint32_t layer,
                              std::uint64_t) {
      const std::lock_guard lock(mutex_);
      layers_[rank].push_back(layer);
    };
    Result<std::unique_ptr<RankThreads>> ranks = RankThreads::open(threads, std::move(places));
    EXPECT_TRUE(ranks.ok()) << ranks.status().to_string();
    ranks_ = *std::move(ranks);
  }

  // Runs one batch through all ranks; the first code that is not ok, and the whole logits.
  Code forward(const Batch& batch, Logits& logits) {
    ranks_->post({.batch = batch});
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [&] { return outputs_.size() == caches_.size(); });
    Code code = Code::ok;
    logits.clear();
    for (const RankOutput& output : outputs_) {
      if (code == Code::ok) code = output.code;
      if (logits.size() < output.logits.size()) {
        logits.resize(output.logits.size(), std::vector<float>(vocab_));
      }
      for (std::size_t i = 0; i < output.logits.size(); ++i) {
        std::copy(output.logits[i].begin(), output.logits[i].end(),
                  logits[i].begin() + output.vocab_first);
      }
    }
    outputs_.clear();
    return code;
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
      EXPECT_EQ(forward({std::move(segment)}, logits), Code::ok);
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
  std::map<std::uint32_t, std::vector<std::uint32_t>>& layers() { return layers_; }

 private:
  RigOptions options_;
  std::uint32_t vocab_ = 0;
  std::deque<std::vector<std::byte>> memory_;
  std::vector<PagedKv> caches_;
  std::vector<std::uint32_t> pages_;
  ThreadFabric fabric_{options_.tp, options_.pp};
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<RankOutput> outputs_;
  std::map<std::uint32_t, std::vector<std::uint32_t>> layers_;  // announced, by rank
  std::unique_ptr<RankThreads> ranks_;
};

}  // namespace kvl::worker::test
