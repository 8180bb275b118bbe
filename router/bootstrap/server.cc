// The service behind a port: one loop, one thread.
#include <boost/asio/post.hpp>
#include <random>
#include <thread>

#include "kvl/bootstrap_server.h"
#include "router/api/metrics.h"
#include "router/bootstrap/memory_store.h"
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
  Handler(Service& service, std::function<std::string()> metrics)
      : service_(service), metrics_(std::move(metrics)) {}

  void handle(http::Session& session) override {
    const http::RequestHead& request = session.request();
    if (request.method == "GET" && request.path() == "/metrics") {
      return session.reply({.content_type = "text/plain; version=0.0.4", .body = metrics_()});
    }
    // The session is kept until its answer is there; a client that has left does not get it.
    service_.handle({.method = request.method,
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
  Service& service_;
  std::function<std::string()> metrics_;
};

class BootstrapServerImpl final : public BootstrapServer, private http::Timed {
 public:
  explicit BootstrapServerImpl(const BootstrapServerOptions& options)
      : options_(options),
        store_(clock_, std::random_device{}() | std::uint64_t{std::random_device{}()} << 32,
               options.records_max),
        service_(store_, clock_, options_),
        handler_(service_,
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
                             .per_address_max = options.max_connections_per_address},
                  .counters = {}} {}

  ~BootstrapServerImpl() override {
    stop();
    if (thread_.joinable()) thread_.join();
  }

  Status start(std::string* error) {
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

  void visit_metrics(MetricVisitor& visitor) const override {
    const http::HttpCounters* const all[] = {&sessions_.counters};
    router::visit_http_metrics(visitor, "kvlane_bootstrap_", all);
    const ServiceCounters& counters = service_.counters();
    const auto counter = [&](const char* name, const char* help, const Counter& value) {
      visitor.counter(name, help, {}, static_cast<double>(value.value()));
    };
    counter("kvlane_bootstrap_registrations_total", "ranks registered",
            counters.registrations_total);
    counter("kvlane_bootstrap_renewals_total", "leases renewed", counters.renewals_total);
    counter("kvlane_bootstrap_removals_total", "leases ended by their owner",
            counters.removals_total);
    counter("kvlane_bootstrap_lookups_total", "lookups of ranks", counters.lookups_total);
    counter("kvlane_bootstrap_refused_total", "well-formed requests that were refused",
            counters.refused_total);
  }

 private:
  // Ends leases while nobody asks, and ends the loop once it is asked to.
  void on_deadline() override {
    store_.expire();
    if (!stopping_) return set_deadline(http::after_seconds(kExpireSecs));
    if (sessions_.open > 0 && http::LoopClock::now() < end_) {
      return set_deadline(http::LoopClock::now() + http::kTick);
    }
    listener_->close_sessions();
    loop_.stop();
  }

  const BootstrapServerOptions options_;
  const SteadyClock clock_;
  MemoryStore store_;
  Service service_;
  Handler handler_;
  http::Loop loop_;
  http::SessionContext sessions_;
  std::unique_ptr<http::Listener> listener_;
  bool stopping_ = false;
  http::TimePoint end_;
  std::thread thread_;
};

}  // namespace
}  // namespace bootstrap

Result<std::unique_ptr<BootstrapServer>> BootstrapServer::open(
    const BootstrapServerOptions& options, std::string* error) {
  auto server = std::make_unique<bootstrap::BootstrapServerImpl>(options);
  if (Status status = server->start(error); !status.ok()) return status;
  return std::unique_ptr<BootstrapServer>(std::move(server));
}

}  // namespace kvl
