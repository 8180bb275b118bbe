// A reliable connection to one peer: its states, what is under way on it, and chains of work
// requests that are posted with one call.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvl/status.h"
#include "transport/base/batch_cursor.h"
#include "transport/base/slot_pool.h"
#include "transport/verbs/verbs_port.h"
#include "transport/verbs/verbs_wire.h"

namespace kvl::verbs {

// A work request as the Link remembers it.
struct Sent {
  enum class Kind : std::uint8_t { write, read, note, message, probe };
  std::uint64_t bytes = 0;
  std::uint32_t batch = kNoSlot;
  std::uint32_t message = kNoSlot;  // its buffer
  Kind kind = Kind::probe;
};

// Work requests that are to be posted together. Nothing is allocated.
class Chain {
 public:
  static constexpr std::uint32_t kMax = 64;

  Chain();
  void clear() { count_ = 0; }
  std::uint32_t count() const { return count_; }
  // A request without a range. `before`: where the batch's cursor stood, should it not be taken.
  ibv_send_wr& add(const Sent& sent, const BatchCursor& before);
  // The last one tells when it is complete, and so do all before it.
  void signal_last() { requests_.at(count_ - 1).send_flags |= IBV_SEND_SIGNALED; }
  const Sent& sent(std::uint32_t i) const { return planned_.at(i).sent; }
  const BatchCursor& before(std::uint32_t i) const { return planned_.at(i).before; }

 private:
  friend class QueuePair;
  struct Planned {
    Sent sent;
    BatchCursor before;
  };
  std::array<ibv_send_wr, kMax> requests_{};
  std::array<ibv_sge, kMax> ranges_{};
  std::array<Planned, kMax> planned_;
  std::uint32_t count_ = 0;
};

// Owner's thread only.
class QueuePair {
 public:
  // `tag` is in the upper half of its work requests' ids. exhausted; unavailable.
  static Result<std::unique_ptr<QueuePair>> open(const OpenPort& port, std::uint32_t tag);

  std::uint32_t number() const { return qp_->qp_num; }
  std::uint32_t tag() const { return tag_; }
  QueuePairAddress address() const;
  // Ready to receive, then to send. invalid_argument: the device does not take this address.
  Status connect(const QueuePairAddress& remote);
  // To the error state: what is under way is flushed, and nothing is taken from the peer any more.
  void stop();

  std::uint32_t room() const { return static_cast<std::uint32_t>(ring_.size()) - under_way(); }
  std::uint32_t under_way() const { return next_ - oldest_; }
  std::uint32_t inline_bytes() const { return inline_bytes_; }
  bool can_read() const { return can_read_; }
  // The newest request under way tells nobody when it is complete: another must follow.
  bool ends_silent() const { return ends_silent_ && under_way() > 0; }

  struct Posted {
    std::uint32_t count;  // how many were taken, from the first
    int error;            // errno of the one that was not; 0: all were
  };
  // count() must not be above room(). The last one is signalled.
  Posted post(Chain& chain);

  // All requests up to the one with this id are off the queue, in order of post.
  // done(const Sent&, bool last). False: no such request is under way.
  template <typename F>
  bool retire(std::uint64_t id, F&& done) {
    const auto number = static_cast<std::uint32_t>(id);
    if (number - oldest_ >= under_way()) return false;
    while (oldest_ != number) {
      const Sent sent = at(oldest_++);
      done(sent, false);
    }
    const Sent sent = at(oldest_++);
    done(sent, true);
    return true;
  }
  // All that is still under way, once the queue pair is destroyed.
  template <typename F>
  void abandon(F&& done) {
    qp_.reset();
    while (oldest_ != next_) {
      const Sent sent = at(oldest_++);
      done(sent, true);
    }
  }

 private:
  QueuePair(const OpenPort& port, std::uint32_t tag);
  Status modify(ibv_qp_attr& attributes, int mask, const char* what);
  Status make();
  Sent& at(std::uint32_t number) { return ring_[number % ring_.size()]; }

  const OpenPort& port_;
  const std::uint32_t tag_;
  const std::uint32_t first_psn_;
  Owned<ibv_qp> qp_;
  std::vector<Sent> ring_;  // a power of two, so that numbers may wrap
  std::uint32_t oldest_ = 0, next_ = 0;
  std::uint32_t inline_bytes_ = 0;
  bool can_read_ = false;
  bool ends_silent_ = false;
};

}  // namespace kvl::verbs
