// One worker: puts the parts together.
#include "worker/worker_server.h"

#include <algorithm>
#include <atomic>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <mutex>

#include "kvl/bootstrap_server.h"
#include "kvl/http_token.h"
#include "kvl/log.h"
#include "kvl/security.h"
#include "worker/front.h"
#include "worker/http_server.h"
#include "worker/process_host.h"

namespace kvl::worker {
namespace {

namespace json = boost::json;

constexpr std::chrono::seconds kRankStart{60};
constexpr std::chrono::seconds kRegister{10};
constexpr std::chrono::milliseconds kRegisterPause{100};

// The program blocks these signals before its threads start, and takes them when it is up.
bool asked_to_stop_within(std::chrono::milliseconds pause) {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGTERM);
  const timespec limit{0, std::chrono::nanoseconds(pause).count()};
  return ::sigtimedwait(&stop, nullptr, &limit) > 0;
}

class Worker final : public WorkerServer {
 public:
  explicit Worker(const WorkerOptions& options) : options_(options) {}
  ~Worker() override;

  Status start(std::string* error);
  std::uint16_t port() const override { return http_->port(); }
  std::string url() const override {
    return "http://" + host_and_port(advertised_host(options_), port());
  }
  std::int32_t bootstrap_port() const override { return bootstrap_port_; }
  SchedulerFigures figures() const override { return scheduler_->figures(); }
  void visit_metrics(MetricVisitor& visitor) const override;
  Scheduler& scheduler() override { return *scheduler_; }

 private:
  Status open_http(std::string* error);
  Status open_rendezvous(std::string* error);
  Status start_processes(std::string* error);
  Status open_ranks(std::string* error);
  Status await_ranks(std::string* error);
  Status register_ranks(std::string* error);
  Status register_rank(const RankRecord& record, const std::string& fallback_url);
  void make_scheduler();
  void make_front();
  void on_event(RankEvent event);

  WorkerOptions options_;
  HostOptions host_options_;
  std::int32_t bootstrap_port_ = -1;

  std::mutex up_mutex_;
  std::condition_variable up_arrived_;
  std::vector<RankUp> up_;  // by rank
  std::uint32_t ranks_up_ = 0;
  bool rank_lost_ = false;

  // In the order of opening; ~Worker ends them in the order that their threads allow.
  std::unique_ptr<HttpServer> http_;
  std::atomic<Front*> ready_{nullptr};
  std::unique_ptr<BootstrapServer> bootstrap_;
  std::unique_ptr<Rendezvous> rendezvous_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<ThreadFabric> fabric_;
  std::vector<std::unique_ptr<RankHost>> hosts_;
  ProcessHost* processes_ = nullptr;  // in hosts_
  std::unique_ptr<Front> front_;
};

Worker::~Worker() {
  // Sinks of the scheduler hold replies of the HTTP server; callbacks of the rendezvous and events
  // of the hosts go to the scheduler.
  if (scheduler_ != nullptr) scheduler_->stop();
  http_.reset();
  rendezvous_.reset();
  hosts_.clear();
}

Status Worker::start(std::string* error) {
  Result<HostOptions> host = host_options(options_, error);
  if (!host) return host.status();
  host_options_ = *std::move(host);
  up_.resize(std::size_t{options_.tp} * options_.pp);
  if (options_.rank_processes) KVL_TRY(start_processes(error));
  KVL_TRY(open_http(error));
  KVL_TRY(open_rendezvous(error));
  make_scheduler();
  if (!options_.rank_processes) KVL_TRY(open_ranks(error));
  KVL_TRY(await_ranks(error));
  KVL_TRY(register_ranks(error));
  std::vector<RankHost*> hosts;
  for (const std::unique_ptr<RankHost>& one : hosts_) hosts.push_back(one.get());
  scheduler_->start(std::move(hosts), up_[0].address);
  make_front();
  ready_ = front_.get();
  return {};
}

Status Worker::open_http(std::string* error) {
  const Result<Settings> settings = worker_settings(options_, error);
  if (!settings) return settings.status();
  auto options = settings->read<HttpServerOptions>(http_server_settings());
  options.host = options_.host;
  options.port = options_.port;
  // The port must be known before the ranks register under it; until the worker is ready it says
  // that it is starting.
  Result<std::unique_ptr<HttpServer>> http = HttpServer::open(
      options,
      [this](const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
        if (Front* const front = ready_.load()) return front->handle(request, reply);
        reply->send(503, "application/json", error_body({503, "unavailable", "starting"}));
      },
      error);
  if (!http) return http.status();
  http_ = *std::move(http);
  return {};
}

Status Worker::open_rendezvous(std::string* error) {
  if (!makes_handoffs(options_)) return {};
  const Result<Settings> settings = worker_settings(options_, error);
  if (!settings) return settings.status();
  const Result<Secrets> secrets = load_secrets(*settings, error);
  if (!secrets) return secrets.status();
  bootstrap_port_ = options_.bootstrap_port > 0 ? options_.bootstrap_port : http_->port();
  if (options_.bootstrap.empty() && options_.bootstrap_port >= 0) {
    BootstrapServerOptions server;
    server.host = options_.host;
    server.port = static_cast<std::uint16_t>(options_.bootstrap_port);
    server.secrets = *secrets;
    server.insecure = settings->read<SecurityConfig>(security_settings()).insecure;
    server.tls_cert_path = options_.tls_cert;
    server.tls_key_path = options_.tls_key;
    if (!options_.tls_cert.empty()) server.tls_client_ca_path = options_.tls_ca;
    Result<std::unique_ptr<BootstrapServer>> opened = BootstrapServer::open(server, error);
    if (!opened) return opened.status();
    bootstrap_ = *std::move(opened);
    bootstrap_port_ = bootstrap_->port();
  }
  RendezvousOptions rendezvous;
  rendezvous.url = options_.bootstrap;
  rendezvous.cluster = options_.cluster;
  rendezvous.token = http_token(*secrets);
  rendezvous.tls = {options_.tls_cert, options_.tls_key, options_.tls_ca};
  rendezvous.wait_ms = static_cast<std::uint32_t>(
      std::min<std::int64_t>(rendezvous.wait_ms, options_.handoff_timeout_ms));
  rendezvous_ = std::make_unique<Rendezvous>(std::move(rendezvous));
  return {};
}

void Worker::make_scheduler() {
  SchedulerOptions scheduler;
  scheduler.model = host_options_.model;
  scheduler.sizes = host_options_.sizes;
  scheduler.role = options_.role;
  scheduler.host = advertised_host(options_);
  scheduler.port = bootstrap_port_;
  scheduler.page_tokens = host_options_.layout.page_tokens;
  scheduler.page_count = host_options_.layout.page_count;
  scheduler.kv_only = options_.kv_only;
  scheduler.mode = options_.mode;
  scheduler.handoff_timeout_ms = options_.handoff_timeout_ms;
  scheduler.chunk_tokens = options_.chunk_tokens;
  scheduler.damage_received = options_.damage_received;
  scheduler_ = std::make_unique<Scheduler>(std::move(scheduler), rendezvous_.get());
}

// Forks: nothing before it may start a thread.
Status Worker::start_processes(std::string* error) {
  const OpenRank open_rank = [this](std::uint32_t rank, Collective& fabric,
                                    const RankEventSink& sink) {
    std::string why;
    const Result<Settings> settings = worker_settings(options_, &why);
    std::unique_ptr<RankHost> opened;
    if (settings) {
      host_options_.settings = &*settings;
      Result<std::unique_ptr<LocalHost>> host =
          LocalHost::open(host_options_, {rank}, {&fabric}, sink, &why);
      if (!host && why.empty()) why = host.status().to_string();
      if (host) opened = *std::move(host);
    }
    if (opened == nullptr) std::fprintf(stderr, "kvlane worker, rank %u: %s\n", rank, why.c_str());
    return opened;
  };
  Result<std::unique_ptr<ProcessHost>> host = ProcessHost::start(host_options_.sizes, open_rank);
  if (!host) {
    if (error != nullptr) *error = host.status().to_string();
    return host.status();
  }
  processes_ = host->get();
  hosts_.push_back(*std::move(host));
  return {};
}

// Ranks in this process are up already; processes get a while for their weights and engines.
Status Worker::await_ranks(std::string* error) {
  if (processes_ != nullptr) {
    processes_->run([this](RankEvent event) { on_event(std::move(event)); });
  }
  std::unique_lock lock(up_mutex_);
  const bool up =
      up_arrived_.wait_for(lock, kRankStart, [&] { return rank_lost_ || ranks_up_ == up_.size(); });
  if (up && !rank_lost_) return {};
  if (error != nullptr) *error = "a rank did not start";
  return {Code::unavailable, "a rank did not start"};
}

Status Worker::open_ranks(std::string* error) {
  const Result<Settings> settings = worker_settings(options_, error);
  if (!settings) return settings.status();
  host_options_.settings = &*settings;
  fabric_ = std::make_unique<ThreadFabric>(options_.tp, options_.pp);
  std::vector<std::uint32_t> ranks;
  std::vector<Collective*> ends;
  for (std::uint32_t rank = 0; rank < options_.tp * options_.pp; ++rank) {
    ranks.push_back(rank);
    ends.push_back(&fabric_->end(rank % options_.tp, rank / options_.tp));
  }
  Result<std::unique_ptr<LocalHost>> host = LocalHost::open(
      host_options_, ranks, ends, [this](RankEvent event) { on_event(std::move(event)); }, error);
  host_options_.settings = nullptr;
  if (!host) return host.status();
  hosts_.push_back(*std::move(host));
  return {};
}

// A rendezvous that starts beside this worker, or whose store is away for a moment, is waited for.
Status Worker::register_rank(const RankRecord& record, const std::string& fallback_url) {
  const auto end = std::chrono::steady_clock::now() + kRegister;
  for (bool told = false;; told = true) {
    Status status = rendezvous_->add_rank(record, fallback_url);
    const bool again = status.code() == Code::unavailable || status.code() == Code::timed_out;
    if (!again || std::chrono::steady_clock::now() >= end) return status;
    if (!told) {
      log(LogLevel::warning, "worker.register_again",
          {{"code", to_string(status.code())},
           {"why", status.to_string()},
           {"hint", "see whether the rendezvous and its store run"}});
    }
    if (asked_to_stop_within(kRegisterPause)) return {Code::aborted, "asked to stop"};
  }
}

Status Worker::register_ranks(std::string* error) {
  if (rendezvous_ == nullptr || options_.role == EngineRole::decode) return {};
  const std::string instance = host_and_port(advertised_host(options_), bootstrap_port_);
  const bool tls = bootstrap_ != nullptr && !options_.tls_cert.empty();
  for (const RankUp& up : up_) {
    RankRecord record;
    record.instance = instance;
    record.role = options_.role;
    const ParallelSlice slice = slice_at(options_.tp, options_.pp, up.rank);
    record.tp_rank = slice.tp_rank;
    record.tp_size = slice.tp_size;
    record.pp_rank = slice.pp_rank;
    record.pp_size = slice.pp_size;
    record.address = up.address;
    record.epoch = up.epoch;
    record.layout = up.layout;
    const Status status = register_rank(record, (tls ? "https://" : "http://") + instance);
    if (!status.ok()) {
      if (error != nullptr) *error = "cannot register at the rendezvous: " + status.to_string();
      return status;
    }
  }
  return {};
}

void Worker::make_front() {
  const ModelConfig& model = host_options_.model;
  const std::string dtype(to_string(model.kv.dtype));
  FrontOptions front;
  front.api = {options_.model, options_.kv_only};
  front.model_info =
      json::serialize(json::object{{"model_path", options_.model},
                                   {"tokenizer_path", "bytes"},
                                   {"is_generation", true},
                                   {"vocab_size", model.vocab},
                                   {"kv_bytes_per_token", model.kv.bytes_per_token()},
                                   {"kv_cache_dtype", dtype}});
  front.server_info = json::serialize(
      json::object{{"model_path", options_.model},
                   {"disaggregation_mode", to_string(options_.role)},
                   {"tp_size", options_.tp},
                   {"pp_size", options_.pp},
                   {"page_size", options_.page_tokens},
                   {"max_total_num_tokens",
                    std::uint64_t{host_options_.layout.page_count} * options_.page_tokens},
                   {"kv_cache_dtype", dtype},
                   {"kv_only", options_.kv_only},
                   {"disaggregation_bootstrap_port", bootstrap_port_}});
  front.metrics = [this] {
    PrometheusText text;
    visit_metrics(text);
    return text.text();
  };
  front_ = std::make_unique<Front>(std::move(front), *scheduler_);
}

void Worker::on_event(RankEvent event) {
  {
    const std::lock_guard lock(up_mutex_);
    if (auto* const up = std::get_if<RankUp>(&event)) {
      if (up->rank < up_.size()) up_[up->rank] = std::move(*up);
      ++ranks_up_;
      up_arrived_.notify_all();
      return;
    }
    if (std::holds_alternative<RankLost>(event)) {
      rank_lost_ = true;
      up_arrived_.notify_all();
    }
  }
  scheduler_->on_event(std::move(event));
}

void Worker::visit_metrics(MetricVisitor& visitor) const {
  const SchedulerFigures f = scheduler_->figures();
  const auto gauge = [&](std::string_view name, std::string_view help, auto value) {
    visitor.gauge(name, help, {}, static_cast<double>(value));
  };
  const auto counter = [&](std::string_view name, std::string_view help, auto value) {
    visitor.counter(name, help, {}, static_cast<double>(value));
  };
  gauge("kvlane_worker_pages_free", "KV pages that nobody holds", f.pages_free);
  gauge("kvlane_worker_pages_held", "KV pages of requests and of the prefix cache", f.pages_held);
  gauge("kvlane_worker_pages_quarantined", "KV pages that a lost peer might still write",
        f.pages_quarantined);
  gauge("kvlane_worker_pages_cached", "KV pages of the prefix cache", f.pages_cached);
  gauge("kvlane_worker_requests_queued", "Requests without pages yet", f.requests_queued);
  gauge("kvlane_worker_requests_running", "Requests with pages", f.requests_running);
  counter("kvlane_worker_requests_ok_total", "Requests that ended well", f.requests_ok);
  for (std::size_t i = 0; i < f.requests_failed.size(); ++i) {
    const auto code = static_cast<Code>(i);
    if (f.requests_failed[i] == 0 && code != Code::unavailable) continue;
    visitor.counter("kvlane_worker_requests_failed_total", "Requests that failed, by cause",
                    {{"cause", std::string(to_string(code))}},
                    static_cast<double>(f.requests_failed[i]));
  }
  counter("kvlane_worker_prompt_tokens_total", "Tokens of admitted prompts", f.prompt_tokens);
  counter("kvlane_worker_cached_tokens_total", "Of these, found in the cache", f.cached_tokens);
  counter("kvlane_worker_output_tokens_total", "Tokens generated", f.output_tokens);
  counter("kvlane_worker_handoffs_ok_total", "Handoffs committed", f.handoffs_ok);
  counter("kvlane_worker_handoffs_failed_total", "Handoffs failed", f.handoffs_failed);
  counter("kvlane_worker_moved_bytes_total", "KV bytes received by handoffs", f.bytes_moved);
  counter("kvlane_worker_pages_moved_total", "KV pages received by handoffs", f.pages_moved);
  counter("kvlane_worker_pages_verified_total", "KV pages compared byte by byte", f.pages_verified);
  counter("kvlane_worker_pages_wrong_total", "KV pages found wrong", f.pages_wrong);
  if (rendezvous_ != nullptr) {
    counter("kvlane_worker_renewals_failed_total", "Renewals of ranks' leases that failed",
            rendezvous_->failed_renewals());
  }
  for (std::size_t i = 0; i < kHttpRefusals; ++i) {
    const auto refusal = static_cast<HttpRefusal>(i);
    visitor.counter("kvlane_worker_http_refused_total",
                    "Connections and requests that were not HTTP, or beyond a limit, by cause",
                    {{"cause", std::string(to_string(refusal))}},
                    static_cast<double>(http_->refused(refusal)));
  }
  for (const std::unique_ptr<RankHost>& host : hosts_) host->visit_metrics(visitor);
}

}  // namespace

Result<std::unique_ptr<WorkerServer>> WorkerServer::open(const WorkerOptions& options,
                                                         std::string* error) {
  auto worker = std::make_unique<Worker>(options);
  KVL_TRY(worker->start(error));
  return std::unique_ptr<WorkerServer>(std::move(worker));
}

}  // namespace kvl::worker
