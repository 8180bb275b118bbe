// The service behind a port: one loop, one thread.
#include <boost/asio/post.hpp>
#include <ctime>
#include <thread>

#include "kvcache/bootstrap/wire.h"
#include "kvl/bootstrap_server.h"
#include "kvl/http_token.h"
#include "router/api/metrics.h"
#include "router/bootstrap/make_store.h"
#include "router/bootstrap/service.h"
#include "router/http/listener.h"
#include "router/http/message.h"

namespace kvl {
namespace bootstrap {
namespace {

constexpr double kGraceSecs = 2;
constexpr std::uint64_t kBodyBytesMax = 2 << 20;  // a registration with the largest layout fits
constexpr std::uint64_t kBufferedBytesMax = 256 << 20;
constexpr double kExpireSecs = 1;

class Handler final : public http::RequestHandler {
 public:
  Handler(const BootstrapServerOptions& options, std::function<std::string()> metrics)
      : tokens_(options.secrets),
        sglang_open_(options.sglang_without_secret),
        metrics_(std::move(metrics)) {}
  void set_service(Service& service) { service_ = &service; }

  void handle(http::Session& session) override {
    const http::RequestHead& request = session.request();
    if (!allowed(session)) {
      return session.turn_away(
          {.status = 401,
           .body = encode_error("secret",
                                "this service has a secret: the request must be signed with it"),
           .headers = "WWW-Authenticate: Bearer\r\n"});
    }
    if (request.method == "GET" && request.path() == "/metrics") {
      return session.reply({.content_type = "text/plain; version=0.0.4", .body = metrics_()});
    }
    // The session is kept until its answer is there; a client that has left does not get it.
    service_->handle({.method = request.method,
                      .path = request.path(),
                      .query = request.query(),
                      .body = session.body()},
                     [kept = session.shared_from_this()](ServiceAnswer answer) {
                       kept->reply({.status = answer.status,
                                    .content_type = answer.content_type,
                                    .body = std::move(answer.body)});
                     });
  }

 private:
  bool allowed(const http::Session& session) const {
    const http::RequestHead& request = session.request();
    if (tokens_.empty() || request.path() == "/health") return true;
    if (sglang_open_ && is_sglang_path(request.path())) return true;
    return tokens_.accept(
        request.headers.find("authorization"),
        {.method = request.method, .target = request.target, .body = session.body()},
        std::time(nullptr));
  }

  const HttpTokens tokens_;
  const bool sglang_open_;
  Service* service_ = nullptr;
  std::function<std::string()> metrics_;
};

Result<std::shared_ptr<TlsContext>> open_tls(const BootstrapServerOptions& o, std::string* error) {
  return http::secure_listener({.component = "bootstrap",
                                .host = o.host,
                                .tls = {.cert = o.tls_cert_path,
                                        .key = o.tls_key_path,
                                        .ca = o.tls_client_ca_path,
                                        .allow_tls_1_2 = o.tls_allow_1_2},
                                .authenticates = !o.secrets.empty(),
                                .insecure = o.insecure},
                               error);
}

class BootstrapServerImpl final : public BootstrapServer, private http::Timed {
 public:
  explicit BootstrapServerImpl(const BootstrapServerOptions& options)
      : options_(options),
        handler_(options,
                 [this] {
                   PrometheusText text;
                   visit_metrics(text);
                   return text.text();
                 }),
        loop_(0),
        sessions_{.loop = loop_,
                  .handler = handler_,
                  .limits = {.body_bytes_max = kBodyBytesMax,
                             .header_timeout_secs = options.header_timeout_secs,
                             .idle_timeout_secs = options.idle_timeout_secs,
                             .buffered_bytes_max = kBufferedBytesMax,
                             .per_address_max = options.max_connections_per_address,
                             .per_address_rate = options.max_requests_per_second_per_address},
                  .counters = {}} {}

  ~BootstrapServerImpl() override {
    stop();
    if (thread_.joinable()) thread_.join();
  }

  Status start(std::string* error) {
    Result<std::shared_ptr<TlsContext>> tls = open_tls(options_, error);
    if (!tls.ok()) return tls.status();
    sessions_.tls = *std::move(tls);
    Result<OpenStore> opened = make_store(loop_, clock_, options_, error);
    if (!opened.ok()) return opened.status();
    store_ = *std::move(opened);
    service_ = std::make_unique<Service>(*store_.store, clock_, options_);
    handler_.set_service(*service_);
    Result<http::Acceptor> acceptor =
        http::listen(loop_, {.host = options_.host, .port = options_.port}, error);
    if (!acceptor.ok()) return acceptor.status();
    listener_ =
        std::make_unique<http::Listener>(sessions_, *std::move(acceptor), options_.max_connections);
    listener_->start();
    loop_.watch(*this);
    on_deadline();
    thread_ = std::thread([this] { loop_.run(); });
    return {};
  }

  std::uint16_t port() const override { return listener_->port(); }

  void stop() override {
    boost::asio::post(loop_.io(), [this] {
      if (stopping_) return;
      stopping_ = true;
      end_ = http::after_seconds(kGraceSecs);
      listener_->stop();
      on_deadline();
    });
  }

  Status reload_tls(std::string* error) override {
    if (store_.etcd != nullptr) KVL_TRY(store_.etcd->reload_tls(error));
    return sessions_.tls == nullptr ? Status{} : sessions_.tls->reload(error);
  }

  void visit_metrics(MetricVisitor& visitor) const override {
    const http::HttpCounters* const all[] = {&sessions_.counters};
    router::visit_http_metrics(visitor, "kvlane_bootstrap_", all);
    store_.store->visit_metrics(visitor);
    const ServiceCounters& counters = service_->counters();
    const auto counter = [&](const char* name, const char* help, const Counter& value) {
      visitor.counter(name, help, {}, static_cast<double>(value.value()));
    };
    counter("kvlane_bootstrap_registrations_total", "ranks registered",
            counters.registrations_total);
    counter("kvlane_bootstrap_renewals_total", "leases renewed", counters.renewals_total);
    counter("kvlane_bootstrap_removals_total", "leases ended by their owner",
            counters.removals_total);
    counter("kvlane_bootstrap_lookups_total", "lookups of ranks", counters.lookups_total);
    for (std::size_t i = 0; i < kRefusals; ++i) {
      visitor.counter("kvlane_bootstrap_refused_total",
                      "well-formed requests that were refused, by cause",
                      {{"cause", std::string(about(static_cast<Refusal>(i)).cause)}},
                      static_cast<double>(counters.refused.counts[i].value()));
    }
  }

 private:
  // Ends leases while nobody asks, and ends the loop once it is asked to.
  void on_deadline() override {
    store_.store->expire();
    if (!stopping_) return set_deadline(http::after_seconds(kExpireSecs));
    if (sessions_.open > 0 && http::LoopClock::now() < end_) {
      return set_deadline(http::LoopClock::now() + http::kTick);
    }
    listener_->close_sessions();
    if (store_.etcd != nullptr) store_.etcd->stop();
    loop_.stop();
  }

  const BootstrapServerOptions options_;
  const SteadyClock clock_;
  Handler handler_;
  http::Loop loop_;
  http::SessionContext sessions_;
  OpenStore store_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<http::Listener> listener_;
  bool stopping_ = false;
  http::TimePoint end_;
  std::thread thread_;
};

}  // namespace
}  // namespace bootstrap

Status check_security(const BootstrapServerOptions& options, std::string* error) {
  KVL_TRY(bootstrap::open_tls(options, error).status());
  if (options.store != "etcd") return {};
  return bootstrap::etcd_options(options, error).status();
}

Result<std::unique_ptr<BootstrapServer>> BootstrapServer::open(
    const BootstrapServerOptions& options, std::string* error) {
  auto server = std::make_unique<bootstrap::BootstrapServerImpl>(options);
  if (Status status = server->start(error); !status.ok()) return status;
  return std::unique_ptr<BootstrapServer>(std::move(server));
}

}  // namespace kvl
