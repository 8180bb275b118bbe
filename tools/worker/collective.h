// What the ranks of one worker say to each other while they compute: gather over the
// tensor-parallel ranks of a stage, hidden states from stage to stage.
#pragma once

#include <barrier>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "kvl/status.h"

namespace kvl::worker {

// One rank's end. Every rank of a stage calls gather() the same number of times in the same order.
class Collective {
 public:
  virtual ~Collective() = default;
  // Every rank's part in rank order. The parts stay valid until the caller's next but one gather(),
  // so callers alternate between two buffers for `mine`.
  virtual Result<std::span<const std::span<const float>>> gather(std::span<const float> mine) = 0;
  // Hidden states to the same rank of the next stage, from that of the previous one.
  virtual Status send_forward(std::span<const float> hidden) = 0;
  virtual Status receive(std::span<float> hidden) = 0;
};

// Ranks as threads of one process: tp * pp ends that share barriers and mailboxes.
class ThreadFabric {
 public:
  ThreadFabric(std::uint32_t tp_size, std::uint32_t pp_size);
  // Used by one thread; lives as long as the fabric.
  Collective& end(std::uint32_t tp_rank, std::uint32_t pp_rank);

 private:
  struct Stage {
    explicit Stage(std::uint32_t ranks) : barrier(static_cast<std::ptrdiff_t>(ranks)) {
      for (auto& parts : published) parts.resize(ranks);
    }
    std::barrier<> barrier;
    std::vector<std::span<const float>> published[2];  // by parity of the call
  };
  // Bounded by the caller: a batch has one message per stage boundary and rank in flight.
  struct Mailbox {
    std::mutex mutex;
    std::condition_variable arrived;
    std::deque<std::vector<float>> messages;
  };
  class End;

  std::uint32_t tp_size_;
  std::vector<std::unique_ptr<Stage>> stages_;
  std::vector<std::unique_ptr<Mailbox>> mailboxes_;  // into (stage, rank)
  std::vector<std::unique_ptr<Collective>> ends_;
};

}  // namespace kvl::worker
