// The ranks of a worker as threads of this process: each computes its part of every batch.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "worker/batch.h"
#include "worker/collective.h"
#include "worker/rank_model.h"

namespace kvl::worker {

class ThreadRanks {
 public:
  // Rank i is (tp_rank = i % tp_size, pp_rank = i / tp_size); caches[i] is its KV. Makes the
  // weights. invalid_argument when the model cannot be cut so.
  static Result<std::unique_ptr<ThreadRanks>> open(const ModelConfig& model, std::uint32_t tp_size,
                                                   std::uint32_t pp_size, std::uint64_t seed,
                                                   std::vector<PagedKv> caches);
  ~ThreadRanks();
  ThreadRanks(const ThreadRanks&) = delete;
  ThreadRanks& operator=(const ThreadRanks&) = delete;

  // Runs one batch through all ranks and waits for it. One caller at a time. `layer_done` is called
  // by rank threads. A batch that is wrong is refused by all ranks and changes nothing.
  Result<Logits> forward(const Batch& batch, const LayerDone& layer_done = {});

 private:
  struct Job {
    const Batch* batch = nullptr;
    const LayerDone* layer_done = nullptr;
    Logits logits;
    std::size_t ranks_left = 0;
    Status status;  // the first that was not ok
  };

  ThreadRanks(const ModelConfig& model, std::uint32_t tp_size, std::uint32_t pp_size)
      : model_(model), fabric_(tp_size, pp_size) {}
  void serve(std::uint32_t rank);

  ModelConfig model_;
  ThreadFabric fabric_;
  std::vector<std::unique_ptr<RankModel>> models_;
  std::mutex mutex_;
  std::condition_variable started_, ended_;
  Job* job_ = nullptr;
  std::uint64_t jobs_ = 0;  // so that a rank takes each job once
  bool closing_ = false;
  std::vector<std::thread> threads_;  // last: they use everything above
};

}  // namespace kvl::worker
