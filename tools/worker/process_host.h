// Ranks as processes of their own, forked from the worker. The worker's end is a hub: it passes
// commands down, events up, and between ranks what they say while they compute.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kvl/transfer_plan.h"
#include "worker/frames.h"
#include "worker/messages.h"

namespace kvl::worker {

class Collective;

// Called in a rank process after the fork: opens the rank with the given end of the fabric and
// event sink, and returns the host; null: it could not (it has said why on standard error).
using OpenRank = std::function<std::unique_ptr<RankHost>(std::uint32_t rank, Collective& fabric,
                                                         RankEventSink sink)>;

class ProcessHost final : public RankHost {
 public:
  // Forks tp * pp processes: the caller's process must have one thread. exhausted: no process or
  // descriptor. Each rank answers with a RankUp or is reported as RankLost.
  static Result<std::unique_ptr<ProcessHost>> start(const ParallelSizes& sizes,
                                                    const OpenRank& open_rank);
  // Ends the processes and waits for them.
  ~ProcessHost() override;

  // Events flow from now on. Once.
  void run(RankEventSink sink);
  void post(const Command& command) override;
  void visit_metrics(MetricVisitor& visitor) const override;
  const std::vector<pid_t>& pids() const { return pids_; }

 private:
  struct Rank {
    int fd = -1;
    FrameReader reader;
    std::deque<std::vector<std::byte>> parts;  // gathers that wait for the others of the stage
    std::mutex mutex;                          // guards what follows
    std::deque<std::vector<std::byte>> unsent;
    std::size_t sent = 0;  // of the first
    bool lost = false;
  };

  explicit ProcessHost(const ParallelSizes& sizes) : sizes_(sizes) {}
  void loop();
  void push(std::uint32_t rank, std::vector<std::byte> bytes);
  void flush(Rank& rank);
  void take(std::uint32_t rank, Channel channel, std::span<const std::byte> body);
  void gather(std::uint32_t stage);
  void lose(std::uint32_t rank);
  void wake();

  ParallelSizes sizes_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<pid_t> pids_;
  RankEventSink sink_;
  int wake_fd_ = -1;
  std::atomic<bool> closing_{false};
  std::thread thread_;
};

}  // namespace kvl::worker
