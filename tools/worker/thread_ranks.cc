// The ranks of a worker as threads of this process.
#include "worker/thread_ranks.h"

#include <algorithm>

namespace kvl::worker {

Result<std::unique_ptr<ThreadRanks>> ThreadRanks::open(const ModelConfig& model,
                                                       std::uint32_t tp_size, std::uint32_t pp_size,
                                                       std::uint64_t seed,
                                                       std::vector<PagedKv> caches) {
  if (!model.computable()) {
    return Status(Code::unsupported, "this model is geometry only: run it with --kv-only");
  }
  if (caches.size() != std::size_t{tp_size} * pp_size) {
    return Status(Code::invalid_argument, "one KV cache per rank is needed");
  }
  std::unique_ptr<ThreadRanks> ranks(new ThreadRanks(model, tp_size, pp_size));
  for (std::uint32_t i = 0; i < caches.size(); ++i) {
    const ParallelSlice slice{tp_size, i % tp_size, pp_size, i / tp_size};
    const Result<RankShare> share = share_of(model, slice);
    if (!share) return share.status();
    if (!(caches[i].layout().slice() == slice)) {
      return Status(Code::invalid_argument, "a KV cache has another rank's layout");
    }
    ranks->models_.push_back(std::make_unique<RankModel>(
        model, *share, seed, caches[i], ranks->fabric_.end(slice.tp_rank, slice.pp_rank)));
  }
  for (std::uint32_t i = 0; i < caches.size(); ++i) {
    ranks->threads_.emplace_back([self = ranks.get(), i] { self->serve(i); });
  }
  return ranks;
}

ThreadRanks::~ThreadRanks() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  started_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

Result<Logits> ThreadRanks::forward(const Batch& batch, const LayerDone& layer_done) {
  Job job;
  job.batch = &batch;
  job.layer_done = &layer_done;
  job.logits.resize(static_cast<std::size_t>(
      std::count_if(batch.begin(), batch.end(), [](const Segment& s) { return s.logits; })));
  for (std::vector<float>& row : job.logits) row.resize(model_.vocab);
  std::unique_lock lock(mutex_);
  job.ranks_left = models_.size();
  job_ = &job;
  ++jobs_;
  started_.notify_all();
  // No deadline: the ranks are threads of ours that end every job.
  ended_.wait(lock, [&] { return job.ranks_left == 0; });
  job_ = nullptr;
  if (!job.status.ok()) return job.status;
  return std::move(job.logits);
}

void ThreadRanks::serve(std::uint32_t rank) {
  std::uint64_t taken = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    started_.wait(lock, [&] { return closing_ || jobs_ != taken; });
    if (closing_) return;
    taken = jobs_;
    Job& job = *job_;
    lock.unlock();
    std::function<void(std::uint32_t)> layer_done;
    if (*job.layer_done) {
      layer_done = [&](std::uint32_t layer) { (*job.layer_done)(rank, layer); };
    }
    // Ranks of the last stage write disjoint columns of the logits.
    const Status status = models_[rank]->forward(*job.batch, layer_done, job.logits);
    lock.lock();
    if (job.status.ok()) job.status = status;
    if (--job.ranks_left == 0) ended_.notify_one();
  }
}

}  // namespace kvl::worker
