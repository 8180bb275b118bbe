// The router put together: loops, their listeners and contexts, the fleet, the health checks.
#include "kvl/router.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <mutex>
#include <random>
#include <thread>

#include "kvl/bootstrap_server.h"
#include "kvl/log.h"
#include "router/api/api.h"
#include "router/api/context.h"
#include "router/api/metrics.h"
#include "router/fleet/caretaker.h"
#include "router/http/listener.h"

namespace kvl {
namespace router {
namespace {

constexpr WorkerRole kRoles[] = {WorkerRole::regular, WorkerRole::prefill, WorkerRole::decode};

// Everything that belongs to one loop's thread.
struct Room {
  Room(std::uint32_t index, Fleet& fleet, RoomAllocator& rooms, const RouterOptions& options,
       RolePolicies policies, std::function<std::string()> metrics, const ApiAccess& access,
       std::shared_ptr<TlsContext> tls, std::shared_ptr<TlsContext> worker_tls)
      : loop(index),
        context(loop, fleet, rooms, options, std::move(policies), std::move(worker_tls)),
        api(context, std::move(metrics), access),
        sessions{.loop = loop,
                 .handler = api,
                 .limits = {.body_bytes_max = options.max_payload_size,
                            .header_timeout_secs = options.header_timeout_secs,
                            .idle_timeout_secs = options.idle_timeout_secs,
                            .buffered_bytes_max = options.max_buffered_bytes,
                            .per_address_max = options.max_connections_per_address,
                            .per_address_rate = options.max_requests_per_second_per_address},
                 .counters = {},
                 .tls = std::move(tls)} {}

  http::Loop loop;
  LoopContext context;
  Api api;
  http::SessionContext sessions;
  std::unique_ptr<http::Listener> listener;
  std::unique_ptr<http::Listener> metrics_listener;  // first room only
};

// Ends a loop once nothing is in flight, or when the grace period is over.
class Stopper final : public http::Timed {
 public:
  Stopper(Room& room) : room_(room) { room.loop.watch(*this); }

  void stop(double grace_secs) {
    end_ = http::after_seconds(grace_secs);
    room_.listener->stop();
    if (room_.metrics_listener != nullptr) room_.metrics_listener->stop();
    on_deadline();
  }

 private:
  void on_deadline() override {
    const bool idle = room_.sessions.open == 0 && room_.context.exchanges == 0;
    if (!idle && http::LoopClock::now() < end_) {
      return set_deadline(http::LoopClock::now() + http::kTick);
    }
    room_.listener->close_sessions();
    if (room_.metrics_listener != nullptr) room_.metrics_listener->close_sessions();
    room_.loop.stop();
  }

  Room& room_;
  http::TimePoint end_;
};

Status fail(std::string* error, std::string sentence, const Status& status) {
  if (error != nullptr) *error = std::move(sentence);
  return status;
}

// What files and settings say about who may connect, and whom the router trusts.
struct Security {
  ApiAccess access;
  std::shared_ptr<TlsContext> tls;         // of the listeners; null: plain
  std::shared_ptr<TlsContext> worker_tls;  // of connections to workers
};

// Workers with https may come later (POST /workers): their side is always there.
Status open_security(const RouterOptions& o, Security& security, std::string* error) {
  Result<std::vector<std::string>> keys = load_api_keys(o.api_key_file, error);
  if (!keys.ok()) return keys.status();
  security.access.tokens = HttpTokens(o.secrets);
  security.access.api_keys = HttpTokens(*std::move(keys));
  Result<std::shared_ptr<TlsContext>> server =
      http::secure_listener({.component = "router",
                             .host = o.host,
                             .tls = {.cert = o.tls_cert_path,
                                     .key = o.tls_key_path,
                                     .ca = o.tls_client_ca_path,
                                     .allow_tls_1_2 = o.tls_allow_1_2},
                             .authenticates = !security.access.open(),
                             .insecure = o.insecure},
                            error);
  if (!server.ok()) return server.status();
  security.tls = *std::move(server);
  Result<std::shared_ptr<TlsContext>> client = TlsContext::client(
      {.cert = o.client_cert_path, .key = o.client_key_path, .ca = o.ca_cert_path}, error);
  if (!client.ok()) return client.status();
  security.worker_tls = *std::move(client);
  return {};
}

// What the policies of one role know, in all loops.
struct Shared {
  explicit Shared(const RouterOptions& options)
      : prefixes(options.cache_tokens),
        sessions(static_cast<std::int64_t>(options.max_idle_secs * 1e9)) {}
  PrefixIndex prefixes;
  SessionTable sessions;
};

class RouterImpl final : public Router {
 public:
  explicit RouterImpl(RouterOptions options)
      : options_(std::move(options)),
        rooms_(std::random_device{}() | std::uint64_t{std::random_device{}()} << 32),
        fleet_(
            {.failure_threshold = options_.health_failure_threshold,
             .success_threshold = options_.health_success_threshold,
             .drain_timeout_secs = options_.shutdown_grace_period_secs,
             .on_cache_lost =
                 [this](const Worker& worker, bool gone) {
                   PrefixIndex& prefixes = shared_of(worker.role).prefixes;
                   gone ? prefixes.remove(worker.id) : prefixes.forget(worker.id);
                 },
             .on_capacity =
                 [this](const Worker& worker) {
                   shared_of(worker.role).prefixes.set_capacity(worker.id, worker.capacity_tokens);
                 }},
            clock_) {
    for (const WorkerRole role : kRoles) {
      shared_[static_cast<std::size_t>(role)] = std::make_unique<Shared>(options_);
    }
  }

  Status start(std::string* error);

  std::uint16_t port() const override { return loops_.front()->listener->port(); }
  std::uint16_t prometheus_port() const override {
    const auto& listener = loops_.front()->metrics_listener;
    return listener == nullptr ? std::uint16_t{0} : listener->port();
  }
  std::uint16_t bootstrap_port() const override {
    return bootstrap_ == nullptr ? std::uint16_t{0} : bootstrap_->port();
  }
  void run() override;
  void stop() override;
  Status reload_tls(std::string* error) override;
  void visit_metrics(MetricVisitor& visitor) const override;

 private:
  const std::string& policy_name(WorkerRole role) const;
  Shared& shared_of(WorkerRole role) const { return *shared_[static_cast<std::size_t>(role)]; }
  Status check(std::string* error) const;
  Status add_workers(std::string* error);
  Status add_loop(std::uint32_t index, std::string* error);
  Status listen_for_metrics(std::string* error);

  const RouterOptions options_;
  const SteadyClock clock_;
  RoomAllocator rooms_;
  std::array<std::unique_ptr<Shared>, 3> shared_;  // by WorkerRole
  Fleet fleet_;
  Security security_;
  std::vector<std::unique_ptr<Room>> loops_;
  std::unique_ptr<Caretaker> caretaker_;
  std::vector<std::unique_ptr<Stopper>> stoppers_;
  std::unique_ptr<BootstrapServer> bootstrap_;
  std::atomic<int> stops_{0};
};

Status RouterImpl::check(std::string* error) const {
  const auto wrong = [&](const char* why) {
    return fail(error, why, {Code::invalid_argument, "router options"});
  };
  const RouterOptions& o = options_;
  if (o.pd_disaggregation) {
    if (!o.workers.empty())
      return wrong("--worker-urls and --pd-disaggregation exclude each other");
  } else if (!o.prefill.empty() || !o.decode.empty()) {
    return wrong("--prefill and --decode need --pd-disaggregation");
  }
  if (o.health_check_endpoint.empty() || o.health_check_endpoint.front() != '/') {
    return wrong("--health-check-endpoint must start with '/'");
  }
  if (o.threads == 0) return wrong("--threads must be at least 1");
  return {};
}

Status RouterImpl::reload_tls(std::string* error) {
  if (security_.tls != nullptr) KVL_TRY(security_.tls->reload(error));
  if (bootstrap_ != nullptr) KVL_TRY(bootstrap_->reload_tls(error));
  return security_.worker_tls->reload(error);
}

Status RouterImpl::add_workers(std::string* error) {
  const auto add = [&](WorkerRole role, const std::string& url, int bootstrap_port) -> Status {
    const Result<WorkerPtr> added = fleet_.add(role, url, bootstrap_port);
    if (added.ok()) return {};
    return fail(error, "worker '" + url + "': " + added.status().context(), added.status());
  };
  for (const PrefillWorker& worker : options_.prefill) {
    KVL_TRY(add(WorkerRole::prefill, worker.url, worker.bootstrap_port));
  }
  for (const std::string& url : options_.decode) KVL_TRY(add(WorkerRole::decode, url, -1));
  for (const std::string& url : options_.workers) KVL_TRY(add(WorkerRole::regular, url, -1));
  return {};
}

const std::string& RouterImpl::policy_name(WorkerRole role) const {
  if (role == WorkerRole::prefill && !options_.prefill_policy.empty()) {
    return options_.prefill_policy;
  }
  if (role == WorkerRole::decode && !options_.decode_policy.empty()) return options_.decode_policy;
  return options_.policy;
}

Status RouterImpl::add_loop(std::uint32_t index, std::string* error) {
  RolePolicies policies;
  for (const WorkerRole role : kRoles) {
    const std::string& name = policy_name(role);
    Shared& shared = shared_of(role);
    Result<std::unique_ptr<Policy>> policy = make_policy(
        name,
        {.role = role, .prefixes = shared.prefixes, .sessions = shared.sessions, .clock = clock_});
    if (!policy.ok()) {
      return fail(error, "policy '" + name + "': " + policy.status().context(), policy.status());
    }
    policies.policies[static_cast<std::size_t>(role)] = *std::move(policy);
    policies.want_prompts[static_cast<std::size_t>(role)] = wants_prompts(name);
    policies.want_sessions = policies.want_sessions || wants_sessions(name);
  }
  auto room = std::make_unique<Room>(
      index, fleet_, rooms_, options_, std::move(policies),
      [this] {
        PrometheusText text;
        visit_metrics(text);
        return text.text();
      },
      security_.access, security_.tls, security_.worker_tls);
  const std::uint16_t port = index == 0 ? options_.port : this->port();
  if (index == 0 && options_.threads > 1) {
    // A shared port would be shared with another router as well: see first whether it is free.
    const Result<http::Acceptor> probe =
        http::listen(room->loop, {.host = options_.host, .port = port}, error);
    if (!probe.ok()) return probe.status();
  }
  Result<http::Acceptor> acceptor = http::listen(
      room->loop, {.host = options_.host, .port = port, .share_port = options_.threads > 1}, error);
  if (!acceptor.ok()) return acceptor.status();
  room->listener = std::make_unique<http::Listener>(room->sessions, *std::move(acceptor),
                                                    options_.max_connections);
  loops_.push_back(std::move(room));
  return {};
}

Status RouterImpl::listen_for_metrics(std::string* error) {
  if (options_.prometheus_port < 0) return {};
  Room& room = *loops_.front();
  const auto port = static_cast<std::uint16_t>(options_.prometheus_port);
  Result<http::Acceptor> acceptor =
      http::listen(room.loop, {.host = options_.host, .port = port}, error);
  if (!acceptor.ok()) return acceptor.status();
  room.metrics_listener = std::make_unique<http::Listener>(room.sessions, *std::move(acceptor),
                                                           options_.max_connections);
  return {};
}

Status RouterImpl::start(std::string* error) {
  KVL_TRY(check(error));
  KVL_TRY(open_security(options_, security_, error));
  KVL_TRY(add_workers(error));
  for (std::uint32_t i = 0; i < options_.threads; ++i) KVL_TRY(add_loop(i, error));
  KVL_TRY(listen_for_metrics(error));
  if (options_.bootstrap_port >= 0) {
    BootstrapServerOptions bootstrap = options_.bootstrap;
    bootstrap.host = options_.host;
    bootstrap.secrets = options_.secrets;
    bootstrap.insecure = options_.insecure;
    bootstrap.port = static_cast<std::uint16_t>(options_.bootstrap_port);
    Result<std::unique_ptr<BootstrapServer>> server = BootstrapServer::open(bootstrap, error);
    if (!server.ok()) return server.status();
    bootstrap_ = *std::move(server);
  }
  Room& first = *loops_.front();
  caretaker_ = std::make_unique<Caretaker>(
      first.loop, fleet_,
      HealthOptions{.ask = !options_.disable_health_check,
                    .path = options_.health_check_endpoint,
                    .interval_secs = options_.health_check_interval_secs,
                    .timeout_secs = options_.health_check_timeout_secs,
                    .ask_capacity = std::any_of(
                        std::begin(kRoles), std::end(kRoles),
                        [this](WorkerRole role) { return wants_prompts(policy_name(role)); })},
      [&first](const Worker& worker) -> http::UpstreamPool& { return first.context.pool(worker); });
  for (const auto& room : loops_) stoppers_.push_back(std::make_unique<Stopper>(*room));
  return {};
}

void RouterImpl::run() {
  for (const auto& room : loops_) room->listener->start();
  if (const auto& listener = loops_.front()->metrics_listener) listener->start();
  caretaker_->start();
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < loops_.size(); ++i) {
    threads.emplace_back([this, i] { loops_[i]->loop.run(); });
  }
  loops_.front()->loop.run();
  for (std::thread& thread : threads) thread.join();
}

void RouterImpl::stop() {
  const double grace = stops_.fetch_add(1) == 0 ? options_.shutdown_grace_period_secs : 0;
  for (std::size_t i = 0; i < loops_.size(); ++i) {
    boost::asio::post(loops_[i]->loop.io(), [this, i, grace] {
      if (i == 0) caretaker_->stop();
      stoppers_[i]->stop(grace);
    });
  }
}

void RouterImpl::visit_metrics(MetricVisitor& visitor) const {
  std::vector<LoopMetrics> loops;
  for (const auto& room : loops_) {
    loops.push_back({room->sessions.counters, room->context.counters()});
  }
  visit_router_metrics(visitor, loops);
  fleet_.visit_metrics(visitor);
  for (const WorkerRole role : kRoles) {
    if (!wants_prompts(policy_name(role))) continue;
    const PrefixIndex::Size size = shared_of(role).prefixes.size();
    const MetricLabels labels = {{"role", std::string(to_string(role))}};
    visitor.gauge("kvlane_router_prefixes",
                  "prefixes of prompts that some worker is thought to have", labels,
                  static_cast<double>(size.prefixes));
    visitor.gauge("kvlane_router_prefix_index_bytes", "memory of their index", labels,
                  static_cast<double>(size.memory_bytes));
  }
  if (bootstrap_ != nullptr) bootstrap_->visit_metrics(visitor);
}

}  // namespace
}  // namespace router

Status check_security(const RouterOptions& options, std::string* error) {
  router::Security security;
  return router::open_security(options, security, error);
}

Result<std::unique_ptr<Router>> Router::open(RouterOptions options, std::string* error) {
  auto instance = std::make_unique<router::RouterImpl>(std::move(options));
  if (Status status = instance->start(error); !status.ok()) return status;
  return std::unique_ptr<Router>(std::move(instance));
}

}  // namespace kvl
