// Ranks of a worker as threads of this process.
#include "worker/rank_threads.h"

#include "worker/kv_only.h"

namespace kvl::worker {

Result<std::unique_ptr<RankThreads>> RankThreads::open(RankThreadsOptions options,
                                                       std::vector<RankPlace> places) {
  if (!options.kv_only && !options.model.computable()) {
    return Status(Code::unsupported, "this model is geometry only: it runs with --kv-only");
  }
  std::unique_ptr<RankThreads> threads(new RankThreads(std::move(options)));
  for (RankPlace& place : places) {
    const Result<RankShare> share = share_of(threads->options_.model, place.kv.layout().slice());
    if (!share) return share.status();
    auto rank = std::make_unique<Rank>(std::move(place));
    if (!threads->options_.kv_only) {
      rank->model =
          std::make_unique<RankModel>(threads->options_.model, *share, threads->options_.seed,
                                      rank->place.kv, *rank->place.collective);
    }
    threads->ranks_.push_back(std::move(rank));
  }
  for (const std::unique_ptr<Rank>& rank : threads->ranks_) {
    threads->threads_.emplace_back([self = threads.get(), one = rank.get()] { self->serve(*one); });
  }
  return threads;
}

RankThreads::~RankThreads() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  posted_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void RankThreads::post(ComputeJob job) {
  const auto shared = std::make_shared<const ComputeJob>(std::move(job));
  {
    const std::lock_guard lock(mutex_);
    for (const std::unique_ptr<Rank>& rank : ranks_) rank->jobs.push_back(shared);
  }
  posted_.notify_all();
}

void RankThreads::serve(Rank& rank) {
  std::unique_lock lock(mutex_);
  for (;;) {
    posted_.wait(lock, [&] { return closing_ || !rank.jobs.empty(); });
    // A job that one rank has begun is finished by all: its peers wait for this one's part.
    if (rank.jobs.empty()) return;
    const std::shared_ptr<const ComputeJob> job = std::move(rank.jobs.front());
    rank.jobs.pop_front();
    lock.unlock();
    options_.on_output(run(rank, *job));
    lock.lock();
  }
}

RankOutput RankThreads::run(Rank& rank, const ComputeJob& job) {
  RankOutput output;
  output.job = job.id;
  output.rank = rank.place.rank;
  const LayerReady layer_ready = [&](std::uint64_t room, std::uint32_t layer,
                                     std::uint64_t tokens) {
    if (options_.on_layer) options_.on_layer(rank.place.rank, room, layer, tokens);
  };
  if (job.kind == ComputeJob::Kind::forward) {
    if (rank.model == nullptr) {
      output.code = Code::unsupported;
    } else {
      output.vocab_first = rank.model->share().vocab.first;
      output.code = rank.model->forward(job.batch, layer_ready, output.logits).code();
    }
    return output;
  }
  output.code = check(rank.place.kv, job.kv).code();
  if (output.code != Code::ok) return output;
  if (job.kind == ComputeJob::Kind::damage) {
    const LayoutGroup& group = rank.place.kv.group();
    std::byte* const element =
        rank.place.kv.at(group.layers.first, KvPart::k, job.kv.pages.front(), group.heads.first);
    element[1] ^= std::byte{0x40};
    return output;
  }
  if (job.kind == ComputeJob::Kind::verify) {
    output.wrong_pages = wrong_pages(rank.place.kv, job.kv);
    return output;
  }
  const Range layers = rank.place.kv.group().layers;
  for (std::uint32_t layer = layers.first; layer < layers.end(); ++layer) {
    fill_layer(rank.place.kv, job.kv, layer);
    if (job.kv.handoff) layer_ready(job.kv.room, layer, job.kv.end_token);
  }
  return output;
}

}  // namespace kvl::worker
