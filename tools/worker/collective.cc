// Ranks as threads: gathers publish a pointer and meet at a barrier; nothing is copied.
#include "worker/collective.h"

#include <algorithm>

namespace kvl::worker {

class ThreadFabric::End final : public Collective {
 public:
  End(Stage& stage, std::uint32_t rank, Mailbox* in, Mailbox* out)
      : stage_(stage), rank_(rank), in_(in), out_(out) {}

  Result<std::span<const std::span<const float>>> gather(std::span<const float> mine) override {
    auto& parts = stage_.published[calls_++ % 2];
    parts[rank_] = mine;
    stage_.barrier.arrive_and_wait();
    return std::span<const std::span<const float>>(parts);
  }

  Status send_forward(std::span<const float> hidden) override {
    if (out_ == nullptr) return {Code::internal, "the last stage has nobody to send to"};
    const std::lock_guard lock(out_->mutex);
    out_->messages.emplace_back(hidden.begin(), hidden.end());
    out_->arrived.notify_one();
    return {};
  }

  Status receive(std::span<float> hidden) override {
    if (in_ == nullptr) return {Code::internal, "the first stage has nobody to receive from"};
    std::unique_lock lock(in_->mutex);
    // No deadline: the sender is a thread of this process that always sends what its job says.
    in_->arrived.wait(lock, [&] { return !in_->messages.empty(); });
    const std::vector<float> message = std::move(in_->messages.front());
    in_->messages.pop_front();
    if (message.size() != hidden.size()) return {Code::internal, "stages disagree about a batch"};
    std::copy(message.begin(), message.end(), hidden.begin());
    return {};
  }

 private:
  Stage& stage_;
  std::uint32_t rank_;
  Mailbox* in_;
  Mailbox* out_;
  std::uint64_t calls_ = 0;
};

ThreadFabric::ThreadFabric(std::uint32_t tp_size, std::uint32_t pp_size) : tp_size_(tp_size) {
  for (std::uint32_t s = 0; s < pp_size; ++s) {
    stages_.push_back(std::make_unique<Stage>(tp_size));
    for (std::uint32_t r = 0; r < tp_size; ++r) mailboxes_.push_back(std::make_unique<Mailbox>());
  }
  for (std::uint32_t s = 0; s < pp_size; ++s) {
    for (std::uint32_t r = 0; r < tp_size; ++r) {
      Mailbox* const in = s == 0 ? nullptr : mailboxes_[s * tp_size + r].get();
      Mailbox* const out = s + 1 == pp_size ? nullptr : mailboxes_[(s + 1) * tp_size + r].get();
      ends_.push_back(std::make_unique<End>(*stages_[s], r, in, out));
    }
  }
}

Collective& ThreadFabric::end(std::uint32_t tp_rank, std::uint32_t pp_rank) {
  return *ends_[std::size_t{pp_rank} * tp_size_ + tp_rank];
}

}  // namespace kvl::worker
