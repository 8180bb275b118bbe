// One worker: ranks, scheduler, rendezvous and HTTP front. Usable in a process of its own (`kvlane
// worker`) or as an object of another program.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kvl/metrics.h"
#include "kvl/status.h"
#include "worker/scheduler.h"
#include "worker/worker_options.h"

namespace kvl::worker {

class WorkerServer {
 public:
  // Serves on return. `error` receives a sentence. With rank_processes it forks and must be called
  // before the process has threads.
  // invalid_argument: options that contradict each other or the model. not_found: model.
  // unavailable: a port in use, no rendezvous, no transport. exhausted: memory.
  static Result<std::unique_ptr<WorkerServer>> open(const WorkerOptions& options,
                                                    std::string* error = nullptr);
  // Stops taking requests, ends handoffs, unregisters, joins.
  virtual ~WorkerServer() = default;

  virtual std::uint16_t port() const = 0;
  virtual std::string url() const = 0;              // "http://host:port"
  virtual std::int32_t bootstrap_port() const = 0;  // for --prefill URL PORT; -1: none
  virtual SchedulerFigures figures() const = 0;
  virtual void visit_metrics(MetricVisitor& visitor) const = 0;
  // For tests: the scheduler under the HTTP front.
  virtual Scheduler& scheduler() = 0;
};

// Runs a worker until SIGINT or SIGTERM; prints where it listens. The exit status of a program.
int run_worker(const WorkerOptions& options);

}  // namespace kvl::worker
