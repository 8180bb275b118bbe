// Looks after the fleet: asks every worker, every few seconds, whether it is well, and removes
// those that have drained. Runs on one loop.
#pragma once

#include <functional>
#include <unordered_map>

#include "router/fleet/fleet.h"
#include "router/http/loop.h"
#include "router/http/upstream.h"

namespace kvl::router {

struct HealthOptions {
  bool ask = true;
  std::string path = "/health";
  double interval_secs = 5;
  double timeout_secs = 5;
  bool ask_capacity = false;  // how many tokens a worker's KV cache holds, when it is well
};

class Caretaker final : public http::Timed {
 public:
  using PoolOf = std::function<http::UpstreamPool&(const Worker&)>;
  Caretaker(http::Loop& loop, Fleet& fleet, HealthOptions options, PoolOf pool_of);

  // The first round is at once. Workers that are not well are asked at least once a second.
  void start();
  void stop() { clear_deadline(); }

 private:
  struct Check {
    http::TimePoint next = http::TimePoint::min();
    bool asking = false;
    bool knows_capacity = false;  // of the process that is there now, or asked in vain
  };
  void on_deadline() override;
  void ask(const WorkerPtr& worker, Check& check);
  void answered(const WorkerPtr& worker, int status, const Status& why);
  void ask_capacity(const WorkerPtr& worker);

  http::Loop& loop_;
  Fleet& fleet_;
  const HealthOptions options_;
  PoolOf pool_of_;
  std::unordered_map<std::uint32_t, Check> checks_;
};

}  // namespace kvl::router
