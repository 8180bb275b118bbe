// Ranks of a worker as threads of this process: each computes its part of every job.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "worker/batch.h"
#include "worker/collective.h"
#include "worker/paged_kv.h"
#include "worker/rank_model.h"

namespace kvl::worker {

// A rank that lives in this process. `collective` and the memory of `kv` outlive the threads.
struct RankPlace {
  std::uint32_t rank = 0;  // flat: pp_rank * tp_size + tp_rank
  PagedKv kv;
  Collective* collective = nullptr;  // null with kv_only
};

struct RankThreadsOptions {
  ModelConfig model;
  std::uint64_t seed = 0;  // of the weights
  bool kv_only = false;    // no weights; forward jobs are refused as unsupported
  // Called by rank threads, one call per rank and job.
  std::function<void(RankOutput)> on_output;
  // Called by the thread of `rank`; may be empty.
  std::function<void(std::uint32_t rank, std::uint64_t room, std::uint32_t layer,
                     std::uint64_t tokens)>
      on_layer;
};

class RankThreads {
 public:
  // Makes the weights. unsupported: a model without arithmetic and not kv_only. invalid_argument:
  // the model cannot be cut as the layouts of the places say.
  static Result<std::unique_ptr<RankThreads>> open(RankThreadsOptions options,
                                                   std::vector<RankPlace> places);
  // Ends after the jobs that were posted. Where ranks wait for each other all of
  // them must have been posted the same jobs.
  ~RankThreads();
  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;

  // Queues the job at every rank here; they take jobs in the order of post. Any thread. The
  // queue's bound is the caller's: it knows what it has in flight.
  void post(ComputeJob job);

 private:
  struct Rank {
    explicit Rank(RankPlace p) : place(std::move(p)) {}
    RankPlace place;
    std::unique_ptr<RankModel> model;
    std::deque<std::shared_ptr<const ComputeJob>> jobs;  // shared: every rank reads the same one
  };

  explicit RankThreads(RankThreadsOptions options) : options_(std::move(options)) {}
  void serve(Rank& rank);
  RankOutput run(Rank& rank, const ComputeJob& job);

  RankThreadsOptions options_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::mutex mutex_;
  std::condition_variable posted_;
  bool closing_ = false;
  std::vector<std::thread> threads_;  // last: they use everything above
};

}  // namespace kvl::worker
