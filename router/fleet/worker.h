// One worker as the router knows it: where it is, how it does, how much it has to do.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "kvl/status.h"
#include "router/http/url.h"

namespace kvl::router {

enum class WorkerRole : std::uint8_t { regular, prefill, decode };
std::string_view to_string(WorkerRole role);

// starting: not heard of yet; it is tried, so that a fleet serves before the first health check.
enum class WorkerState : std::uint8_t { starting, healthy, unhealthy, draining };
std::string_view to_string(WorkerState state);

// How a worker failed a request, or a health check.
enum class WorkerFault : std::uint8_t {
  unreachable,   // no connection
  timed_out,     // no connection in time
  not_trusted,   // TLS: it is not who it should be
  broke_off,     // it closed the connection in the middle
  bad_answer,    // not HTTP
  error_answer,  // 500 and above
  blamed,        // another worker says that it has lost this one
  health_check,
};
inline constexpr std::size_t kWorkerFaults =
    static_cast<std::size_t>(WorkerFault::health_check) + 1;
std::string_view to_string(WorkerFault fault);
WorkerFault fault_of(Code code);

// The constant part is written before the worker is shared; the atomics by any loop.
struct Worker {
  std::uint32_t id = 0;
  WorkerRole role = WorkerRole::regular;
  http::Url url;
  int bootstrap_port = -1;
  std::string address;         // "http://a:1": the same for every router
  std::string host_line;       // "Host: a:1\r\n"
  std::string session_prefix;  // "bootstrap_host":"a","bootstrap_port":1,"bootstrap_room":

  std::atomic<WorkerState> state{WorkerState::starting};
  std::atomic<std::uint32_t> in_flight{0};
  // Of requests in flight, estimated: to be computed before their first token, and read for each
  // later one.
  std::atomic<std::uint64_t> prefill_tokens{0}, context_tokens{0};
  std::atomic<std::uint32_t> failures_in_row{0}, good_checks_in_row{0};
  std::atomic<std::uint64_t> requests_total{0};
  std::array<std::atomic<std::uint64_t>, kWorkerFaults> failures{};  // by WorkerFault
  std::atomic<std::int64_t> last_success_ns{0};                      // steady clock
  std::atomic<std::uint64_t> capacity_tokens{0};  // of its KV cache, as it says; 0: not known

  std::uint64_t failures_total() const {
    std::uint64_t sum = 0;
    for (const auto& count : failures) sum += count.load(std::memory_order_relaxed);
    return sum;
  }
  bool usable() const {
    const WorkerState s = state.load(std::memory_order_relaxed);
    return s == WorkerState::healthy || s == WorkerState::starting;
  }
};

// Shared: the fleet, snapshots held by loops and requests in flight all keep a worker alive.
using WorkerPtr = std::shared_ptr<Worker>;

}  // namespace kvl::router
