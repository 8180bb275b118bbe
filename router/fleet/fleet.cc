// Keeps the set of workers as an immutable snapshot, and their states by plain rules.
#include "router/fleet/fleet.h"

#include <algorithm>

#include "kvl/log.h"
#include "router/http/message.h"

namespace kvl::router {

std::string_view to_string(WorkerRole role) {
  switch (role) {
    case WorkerRole::regular:
      return "regular";
    case WorkerRole::prefill:
      return "prefill";
    case WorkerRole::decode:
      return "decode";
  }
  return "unknown";
}

std::string_view to_string(WorkerState state) {
  switch (state) {
    case WorkerState::starting:
      return "starting";
    case WorkerState::healthy:
      return "healthy";
    case WorkerState::unhealthy:
      return "unhealthy";
    case WorkerState::draining:
      return "draining";
  }
  return "unknown";
}

Fleet::Fleet(FleetOptions options, const Clock& clock)
    : options_(options), clock_(clock), workers_(std::make_shared<WorkerSet>()) {}

std::shared_ptr<const WorkerSet> Fleet::workers() const {
  const std::lock_guard lock(mutex_);
  return workers_;
}

void Fleet::publish(std::vector<WorkerPtr> all) {
  auto set = std::make_shared<WorkerSet>();
  set->version = workers_->version + 1;
  for (const WorkerPtr& worker : all) {
    set->by_role[static_cast<std::size_t>(worker->role)].push_back(worker);
  }
  set->all = std::move(all);
  version_.store(set->version, std::memory_order_release);
  workers_ = std::move(set);
}

Result<WorkerPtr> Fleet::add(WorkerRole role, std::string_view url, int bootstrap_port) {
  const std::optional<http::Url> parsed = http::parse_url(url);
  if (!parsed.has_value()) {
    return Status{Code::invalid_argument,
                  "a worker's URL must be http://HOST:PORT or https://HOST:PORT"};
  }
  const std::lock_guard lock(mutex_);
  for (const WorkerPtr& known : workers_->all) {
    if (known->role == role && known->url.text() == parsed->text()) {
      return Status{Code::permission, "the worker is registered already"};
    }
  }
  auto worker = std::make_shared<Worker>();
  worker->id = next_id_++;
  worker->role = role;
  worker->url = *parsed;
  worker->bootstrap_port = bootstrap_port;
  worker->host_line = "Host: " + parsed->authority() + "\r\n";
  worker->session_prefix =
      "\"bootstrap_host\":" + http::json_quote(parsed->host_text()) +
      ",\"bootstrap_port\":" + (bootstrap_port < 0 ? "null" : std::to_string(bootstrap_port)) +
      ",\"bootstrap_room\":";
  std::vector<WorkerPtr> all = workers_->all;
  all.push_back(worker);
  publish(std::move(all));
  return worker;
}

Status Fleet::drain(std::uint32_t id) {
  const std::lock_guard lock(mutex_);
  for (const WorkerPtr& worker : workers_->all) {
    if (worker->id != id) continue;
    if (worker->state.exchange(WorkerState::draining) != WorkerState::draining) {
      const auto timeout_ns = static_cast<std::int64_t>(options_.drain_timeout_secs * 1e9);
      drains_.push_back({id, clock_.now_ns() + timeout_ns});
    }
    return {};
  }
  return {Code::not_found, "no worker has this id"};
}

void Fleet::sweep() {
  const std::lock_guard lock(mutex_);
  if (drains_.empty()) return;
  const std::int64_t now = clock_.now_ns();
  std::vector<WorkerPtr> all = workers_->all;
  std::erase_if(drains_, [&](const Drain& drain) {
    const auto at = std::find_if(all.begin(), all.end(),
                                 [&](const WorkerPtr& worker) { return worker->id == drain.id; });
    const bool over = at == all.end() || (*at)->in_flight == 0 || drain.deadline_ns <= now;
    if (over && at != all.end()) all.erase(at);
    return over;
  });
  if (all.size() != workers_->all.size()) publish(std::move(all));
}

void Fleet::set_state(Worker& worker, WorkerState from, WorkerState to, std::string_view why) {
  // Only from the state that was judged: draining, above all, is not undone by a good answer.
  if (!worker.state.compare_exchange_strong(from, to)) return;
  log(to == WorkerState::unhealthy ? LogLevel::warning : LogLevel::info, "fleet.worker_state",
      {{"worker", worker.url.text()},
       {"role", to_string(worker.role)},
       {"state", to_string(to)},
       {"why", why}});
}

void Fleet::succeeded(Worker& worker) {
  worker.failures_in_row.store(0, std::memory_order_relaxed);
  worker.last_success_ns.store(clock_.now_ns(), std::memory_order_relaxed);
  const WorkerState state = worker.state.load(std::memory_order_relaxed);
  if (state == WorkerState::starting || state == WorkerState::unhealthy) {
    set_state(worker, state, WorkerState::healthy, "answers requests");
  }
}

void Fleet::failed(Worker& worker, bool unreachable, std::string_view why) {
  worker.failures_total.fetch_add(1, std::memory_order_relaxed);
  worker.good_checks_in_row.store(0, std::memory_order_relaxed);
  const std::uint32_t failures = worker.failures_in_row.fetch_add(1, std::memory_order_relaxed) + 1;
  if (unreachable || failures >= options_.failure_threshold) {
    const WorkerState state = worker.state.load(std::memory_order_relaxed);
    if (state == WorkerState::starting || state == WorkerState::healthy) {
      set_state(worker, state, WorkerState::unhealthy, why);
    }
  }
}

void Fleet::checked(Worker& worker, bool good, double interval_secs, std::string_view why) {
  if (!good) {
    const std::int64_t quiet_ns = clock_.now_ns() - worker.last_success_ns.load();
    const bool busy =
        worker.last_success_ns.load() != 0 && static_cast<double>(quiet_ns) < interval_secs * 1e9;
    if (!busy) failed(worker, false, why);
    return;
  }
  const std::uint32_t checks = worker.good_checks_in_row.fetch_add(1) + 1;
  const WorkerState state = worker.state.load();
  const bool enough = state == WorkerState::starting ||
                      (state == WorkerState::unhealthy && checks >= options_.success_threshold);
  if (!enough) return;
  worker.failures_in_row.store(0, std::memory_order_relaxed);
  set_state(worker, state, WorkerState::healthy, "health check");
}

void Fleet::visit_metrics(MetricVisitor& visitor) const {
  const std::shared_ptr<const WorkerSet> set = workers();
  for (const WorkerPtr& worker : set->all) {
    const MetricLabels labels = {{"worker", worker->url.text()},
                                 {"role", std::string(to_string(worker->role))}};
    visitor.gauge("kvlane_router_worker_healthy", "1: requests go to this worker", labels,
                  worker->usable() ? 1 : 0);
    visitor.gauge("kvlane_router_worker_in_flight", "requests in flight at this worker", labels,
                  worker->in_flight.load());
    visitor.counter("kvlane_router_worker_requests_total", "requests sent to this worker", labels,
                    static_cast<double>(worker->requests_total.load()));
    visitor.counter("kvlane_router_worker_failures_total",
                    "requests and health checks that this worker failed", labels,
                    static_cast<double>(worker->failures_total.load()));
  }
}

}  // namespace kvl::router
