// What shall go wrong, counted from 0. An empty plan changes nothing.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kvl/transport.h"

namespace kvl::fault {

// Every call of a Link, or by a Link, that may fail.
enum class Call : std::uint8_t {
  open_link,
  open_peer,
  offer,
  accept,
  add_memory,
  remove_memory,
  export_memory,
  import_memory,
  post,
  cancel,
  control_send,  // by the Link
  memory_copy,   // by the Link
};
inline constexpr std::size_t kCalls = 12;

// Call number `number` of that kind fails with `status` and does nothing else.
struct FailedCall {
  Call call = Call::post;
  std::uint64_t number = 0;
  Status status{Code::exhausted, "fault: planned"};
};

// The ok event of batch number `number` (in order of events) is shown with this code instead; the
// batch itself really ended.
struct FailedBatch {
  std::uint64_t number = 0;
  Code code = Code::unavailable;
};

// `count` events from number `first` on are shown `polls` polls late; those behind them wait, so
// that order is kept. kForever: they are swallowed, which no honest Link does.
struct HeldEvents {
  static constexpr std::uint32_t kForever = UINT32_MAX;
  std::uint64_t first = 0;
  std::uint64_t count = 1;
  std::uint32_t polls = 1;
};

// Right after batch event number `batch`, its peer is closed and reported lost with this code.
struct LostPeer {
  std::uint64_t batch = 0;
  Code code = Code::peer_lost;
};

struct FaultPlan {
  std::vector<FailedCall> calls;
  // The call with this number fails, whatever it is: the sweep counts it up from 0.
  std::optional<std::uint64_t> any_call;
  Status any_status{Code::exhausted, "fault: planned"};
  std::vector<FailedBatch> batches;
  std::vector<HeldEvents> events;
  std::vector<LostPeer> peers;

  bool touches_events() const { return !batches.empty() || !events.empty() || !peers.empty(); }
};

// A plan and how far it has come; shared by every Link of a FaultTransport. Thread-safe.
class FaultState {
 public:
  explicit FaultState(FaultPlan plan) : plan_(std::move(plan)) {}

  const FaultPlan& plan() const { return plan_; }
  // Counts the call; not ok: it is to fail.
  Status enter(Call call) {
    const std::uint64_t any = calls_.fetch_add(1, std::memory_order_relaxed);
    const std::uint64_t number =
        by_call_[static_cast<std::size_t>(call)].fetch_add(1, std::memory_order_relaxed);
    for (const FailedCall& failed : plan_.calls) {
      if (failed.call == call && failed.number == number) return hit_at(call, failed.status);
    }
    return plan_.any_call == any ? hit_at(call, plan_.any_status) : Status{};
  }
  std::uint64_t next_event() { return events_.fetch_add(1, std::memory_order_relaxed); }
  std::uint64_t next_batch() { return batches_.fetch_add(1, std::memory_order_relaxed); }
  Status hit(Status status = {}) {
    hits_.fetch_add(1, std::memory_order_relaxed);
    return status;
  }

  std::uint64_t calls() const { return calls_.load(std::memory_order_relaxed); }
  std::uint64_t calls(Call call) const {
    return by_call_[static_cast<std::size_t>(call)].load(std::memory_order_relaxed);
  }
  std::uint64_t batches() const { return batches_.load(std::memory_order_relaxed); }  // events
  // The call that was made to fail last; kCalls as a Call: none.
  Call hit_call() const { return hit_call_.load(std::memory_order_relaxed); }
  // How often something of the plan has happened.
  std::uint64_t hits() const { return hits_.load(std::memory_order_relaxed); }

 private:
  Status hit_at(Call call, Status status) {
    hit_call_.store(call, std::memory_order_relaxed);
    return hit(status);
  }

  const FaultPlan plan_;
  std::array<std::atomic<std::uint64_t>, kCalls> by_call_{};
  std::atomic<std::uint64_t> calls_{0}, events_{0}, batches_{0}, hits_{0};
  std::atomic<Call> hit_call_{static_cast<Call>(kCalls)};
};

}  // namespace kvl::fault
