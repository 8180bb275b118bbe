// What the requests of one loop share: options, workers, policies, connection pools, counters.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <unordered_map>

#include "kvl/metrics.h"
#include "kvl/router.h"
#include "router/api/room.h"
#include "router/fleet/fleet.h"
#include "router/http/head.h"
#include "router/http/upstream.h"
#include "router/policy/policy.h"

namespace kvl::router {

// Written by the loop's thread, read by any.
struct RouterCounters {
  static constexpr std::size_t kCodes = static_cast<std::size_t>(Code::internal) + 1;
  std::array<Counter, kCodes> failed;  // by Code
  Counter requests_total, bad_requests_total, retries_total, client_gone_total, timeouts_total;
  Counter prefill_failures_total, decode_failures_total, broken_streams_total, aborts_total;
  Counter answers_2xx_total, answers_4xx_total, answers_5xx_total;
  Counter prompt_tokens_total, cached_tokens_total;  // estimates, of prompts that were looked at
  Counter duration_us_total, first_byte_us_total;    // of the answers above, from the request's end
};

// By WorkerRole.
struct RolePolicies {
  std::array<std::unique_ptr<Policy>, 3> policies;
  std::array<bool, 3> want_prompts{};
  bool want_sessions = false;  // one of them
};

class LoopContext {
 public:
  LoopContext(http::Loop& loop, Fleet& fleet, RoomAllocator& rooms, const RouterOptions& options,
              RolePolicies policies, std::shared_ptr<TlsContext> tls);

  http::Loop& loop() { return loop_; }
  Fleet& fleet() { return fleet_; }
  RoomAllocator& rooms() { return rooms_; }
  const RouterOptions& options() const { return options_; }
  RouterCounters& counters() { return counters_; }
  const RouterCounters& counters() const { return counters_; }

  // The fleet as of now; pools of workers that have gone are closed on the way.
  const WorkerSet& workers();
  // A usable worker of the role whose id is not in `avoid`; null when there is none.
  struct Picked {
    WorkerPtr worker;
    std::uint64_t cached_tokens = 0;  // of the prompt, that it is thought to have
  };
  Picked pick(WorkerRole role, std::span<const std::uint32_t> avoid, const Ask& ask);
  // Requests of this role are chosen for by what their prompt is.
  bool wants_prompts(WorkerRole role) const {
    return policies_.want_prompts[static_cast<std::size_t>(role)];
  }
  // What the request calls its session, where a policy asks for that.
  std::string session_of(const http::RequestHead& head) const;
  http::UpstreamPool& pool(const Worker& worker);

  std::size_t exchanges = 0;  // in progress

 private:
  http::Loop& loop_;
  Fleet& fleet_;
  RoomAllocator& rooms_;
  const RouterOptions& options_;
  RolePolicies policies_;
  std::vector<std::string> session_headers_;
  Random random_;
  RouterCounters counters_;
  std::shared_ptr<const WorkerSet> workers_;
  std::unordered_map<std::uint32_t, std::unique_ptr<http::UpstreamPool>> pools_;
  std::shared_ptr<TlsContext> tls_;  // to workers; shared by all loops
  std::vector<Worker*> candidates_;
};

}  // namespace kvl::router
