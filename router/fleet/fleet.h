// The workers: added, judged by their traffic and their health checks, drained, removed.
// Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/clock.h"
#include "kvl/metrics.h"
#include "kvl/status.h"
#include "router/fleet/worker.h"

namespace kvl::router {

struct FleetOptions {
  std::uint32_t failure_threshold = 3;
  std::uint32_t success_threshold = 1;
  double drain_timeout_secs = 180;
  // The worker's KV cache is empty, or the worker is gone for good; how many tokens it can hold.
  // Called by any thread, one of them perhaps with the fleet locked.
  std::function<void(const Worker&, bool gone)> on_cache_lost;
  std::function<void(const Worker&)> on_capacity;
};

// The workers at one moment. Loops keep the latest and compare versions.
struct WorkerSet {
  std::uint64_t version = 0;
  std::vector<WorkerPtr> all;
  std::vector<WorkerPtr> by_role[3];
  const std::vector<WorkerPtr>& of(WorkerRole role) const {
    return by_role[static_cast<std::size_t>(role)];
  }
};

class Fleet {
 public:
  Fleet(FleetOptions options, const Clock& clock);

  // invalid_argument: not a URL; permission: that worker is there already.
  Result<WorkerPtr> add(WorkerRole role, std::string_view url, int bootstrap_port);
  // No new requests; removed by sweep() once idle. not_found.
  Status drain(std::uint32_t id);
  // Removes workers that have drained or whose drain took too long.
  void sweep();

  std::shared_ptr<const WorkerSet> workers() const;
  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }

  // What requests show: any answer below 500 is a success; failures in a row make a worker
  // unhealthy, a refused connection does so at once.
  void succeeded(Worker& worker);
  void failed(Worker& worker, WorkerFault fault, std::string_view why);
  // What a health check showed. A check that fails while requests succeed (a worker too busy to
  // answer it) is not held against the worker.
  void checked(Worker& worker, bool good, double interval_secs, std::string_view why);

  // It has been flushed, or the process there is another one.
  void cache_lost(const Worker& worker);
  // What the worker says of itself.
  void told_capacity(Worker& worker, std::uint64_t tokens);

  void visit_metrics(MetricVisitor& visitor) const;

 private:
  void publish(std::vector<WorkerPtr> all);
  void set_healthy(Worker& worker, WorkerState from, std::string_view why);
  void set_unhealthy(Worker& worker, WorkerState from, WorkerFault fault, std::string_view why);

  const FleetOptions options_;
  const Clock& clock_;
  mutable std::mutex mutex_;  // guards the rest
  std::shared_ptr<const WorkerSet> workers_;
  struct Drain {
    std::uint32_t id;
    std::int64_t deadline_ns;
  };
  std::vector<Drain> drains_;
  std::uint32_t next_id_ = 1;
  std::atomic<std::uint64_t> version_{0};
};

}  // namespace kvl::router
