// Keeps the set of workers as an immutable snapshot, and their states by plain rules.
#include "router/fleet/fleet.h"

#include <algorithm>
#include <array>
#include <utility>

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

namespace {

struct FaultInfo {
  WorkerFault fault;
  Code code;
  std::string_view name, hint;
};
constexpr std::array<FaultInfo, kWorkerFaults> kFaults{{
    {WorkerFault::unreachable, Code::unavailable, "unreachable",
     "see whether the worker runs and listens there, and the network between"},
    {WorkerFault::timed_out, Code::timed_out, "timed_out",
     "see whether the worker's host answers, and the network between"},
    {WorkerFault::not_trusted, Code::permission, "not_trusted",
     "compare the worker's certificate with the authorities that are trusted here"},
    {WorkerFault::broke_off, Code::peer_lost, "broke_off",
     "see why the worker ended: its log, the kernel's (out of memory)"},
    {WorkerFault::bad_answer, Code::corrupt, "bad_answer",
     "see what listens there: it does not speak HTTP/1.1"},
    {WorkerFault::error_answer, Code::unavailable, "error_answer",
     "the worker answers with errors: see its log"},
    {WorkerFault::blamed, Code::peer_lost, "blamed",
     "the other worker of a request has lost it: see the logs of both, and the network between"},
    {WorkerFault::health_check, Code::unavailable, "health_check",
     "the worker does not pass its health check: see its log"},
}};

const FaultInfo& about(WorkerFault fault) { return kFaults[static_cast<std::size_t>(fault)]; }

}  // namespace

std::string_view to_string(WorkerFault fault) { return about(fault).name; }

WorkerFault fault_of(Code code) {
  switch (code) {
    case Code::timed_out:
      return WorkerFault::timed_out;
    case Code::permission:
      return WorkerFault::not_trusted;
    case Code::peer_lost:
      return WorkerFault::broke_off;
    case Code::corrupt:
      return WorkerFault::bad_answer;
    default:
      return WorkerFault::unreachable;
  }
}

Fleet::Fleet(FleetOptions options, const Clock& clock)
    : options_(std::move(options)), clock_(clock), workers_(std::make_shared<WorkerSet>()) {}

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
  worker->address = parsed->text();
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
    if (over && at != all.end()) {
      if (options_.on_cache_lost) options_.on_cache_lost(**at, true);
      all.erase(at);
    }
    return over;
  });
  if (all.size() != workers_->all.size()) publish(std::move(all));
}

void Fleet::cache_lost(const Worker& worker) {
  if (options_.on_cache_lost) options_.on_cache_lost(worker, false);
}

void Fleet::told_capacity(Worker& worker, std::uint64_t tokens) {
  if (worker.capacity_tokens.exchange(tokens) == tokens || !options_.on_capacity) return;
  options_.on_capacity(worker);
}

// Only from the state that was judged: draining, above all, is not undone by a good answer.
void Fleet::set_healthy(Worker& worker, WorkerState from, std::string_view why) {
  if (!worker.state.compare_exchange_strong(from, WorkerState::healthy)) return;
  log(LogLevel::info, "fleet.worker_healthy",
      {{"worker", worker.url.text()}, {"role", to_string(worker.role)}, {"why", why}});
}

void Fleet::set_unhealthy(Worker& worker, WorkerState from, WorkerFault fault,
                          std::string_view why) {
  if (!worker.state.compare_exchange_strong(from, WorkerState::unhealthy)) return;
  // Whoever refuses connections has ended, and with it its cache.
  if (fault == WorkerFault::unreachable) cache_lost(worker);
  const FaultInfo& info = about(fault);
  log(LogLevel::warning, "fleet.worker_unhealthy",
      {{"worker", worker.url.text()},
       {"role", to_string(worker.role)},
       {"code", to_string(info.code)},
       {"cause", info.name},
       {"why", why},
       {"hint", info.hint}});
}

void Fleet::succeeded(Worker& worker) {
  worker.failures_in_row.store(0, std::memory_order_relaxed);
  worker.last_success_ns.store(clock_.now_ns(), std::memory_order_relaxed);
  const WorkerState state = worker.state.load(std::memory_order_relaxed);
  if (state == WorkerState::starting || state == WorkerState::unhealthy) {
    set_healthy(worker, state, "answers requests");
  }
}

void Fleet::failed(Worker& worker, WorkerFault fault, std::string_view why) {
  const bool unreachable = fault == WorkerFault::unreachable || fault == WorkerFault::timed_out;
  worker.failures[static_cast<std::size_t>(fault)].fetch_add(1, std::memory_order_relaxed);
  worker.good_checks_in_row.store(0, std::memory_order_relaxed);
  const std::uint32_t failures = worker.failures_in_row.fetch_add(1, std::memory_order_relaxed) + 1;
  if (unreachable || failures >= options_.failure_threshold) {
    const WorkerState state = worker.state.load(std::memory_order_relaxed);
    if (state == WorkerState::starting || state == WorkerState::healthy) {
      set_unhealthy(worker, state, fault, why);
    }
  }
}

void Fleet::checked(Worker& worker, bool good, double interval_secs, std::string_view why) {
  if (!good) {
    const std::int64_t quiet_ns = clock_.now_ns() - worker.last_success_ns.load();
    const bool busy =
        worker.last_success_ns.load() != 0 && static_cast<double>(quiet_ns) < interval_secs * 1e9;
    if (!busy) failed(worker, WorkerFault::health_check, why);
    return;
  }
  const std::uint32_t checks = worker.good_checks_in_row.fetch_add(1) + 1;
  const WorkerState state = worker.state.load();
  const bool enough = state == WorkerState::starting ||
                      (state == WorkerState::unhealthy && checks >= options_.success_threshold);
  if (!enough) return;
  worker.failures_in_row.store(0, std::memory_order_relaxed);
  set_healthy(worker, state, "health check");
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
    visitor.gauge("kvlane_router_worker_prefill_tokens",
                  "tokens that this worker has yet to compute, estimated", labels,
                  static_cast<double>(worker->prefill_tokens.load()));
    visitor.gauge("kvlane_router_worker_context_tokens",
                  "tokens of requests that this worker answers, estimated", labels,
                  static_cast<double>(worker->context_tokens.load()));
    visitor.counter("kvlane_router_worker_requests_total", "requests sent to this worker", labels,
                    static_cast<double>(worker->requests_total.load()));
    for (const FaultInfo& info : kFaults) {
      const auto& count = worker->failures[static_cast<std::size_t>(info.fault)];
      MetricLabels with_cause = labels;
      with_cause.emplace_back("cause", info.name);
      visitor.counter("kvlane_router_worker_failures_total",
                      "requests and health checks that this worker failed, by cause", with_cause,
                      static_cast<double>(count.load(std::memory_order_relaxed)));
    }
  }
}

}  // namespace kvl::router
