// A router in a thread, in front of stub workers.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "kvl/router.h"
#include "tests/router/support/stub_worker.h"
#include "tests/router/support/test_client.h"
#include "tests/support/log_guard.h"

namespace kvl::test {

class RunningRouter {
 public:
  // On loopback, any port, without health checks unless the options say otherwise.
  explicit RunningRouter(RouterOptions options) {
    options.host = "127.0.0.1";
    options.port = 0;
    std::string error;
    Result<std::unique_ptr<Router>> opened = Router::open(std::move(options), &error);
    if (!opened.ok()) {
      ADD_FAILURE() << error;
      return;
    }
    router_ = *std::move(opened);
    thread_ = std::thread([this] { router_->run(); });
  }
  ~RunningRouter() {
    if (router_ == nullptr) return;
    router_->stop();
    router_->stop();  // without grace
    join();
  }
  RunningRouter(const RunningRouter&) = delete;
  RunningRouter& operator=(const RunningRouter&) = delete;

  Router& operator*() const { return *router_; }
  Router* operator->() const { return router_.get(); }
  std::uint16_t port() const { return router_->port(); }
  void join() {
    if (thread_.joinable()) thread_.join();
  }
  // The value of a metric without labels.
  double metric(const std::string& name) const {
    PrometheusText text;
    router_->visit_metrics(text);
    const std::string all = text.text();
    double sum = -1;  // over all labels
    for (std::size_t at = 0; (at = all.find("\n" + name, at)) != std::string::npos; ++at) {
      const std::size_t end = at + 1 + name.size();
      if (all[end] != ' ' && all[end] != '{') continue;
      sum = std::max(sum, 0.0) + std::atof(all.c_str() + all.rfind(' ', all.find('\n', end)));
    }
    return sum;
  }
  // True once the metric has reached the value, within kPatience.
  bool wait_metric(const std::string& name, double value) const {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (metric(name) < value) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
    return true;
  }
  // True once no worker has a request in flight, within kPatience: prefill's answer is read to its
  // end after the client has decode's.
  bool wait_idle() const {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (true) {
      PrometheusText text;
      router_->visit_metrics(text);
      const std::string all = text.text();
      bool idle = true;
      constexpr std::string_view kName = "\nkvlane_router_worker_in_flight{";
      for (std::size_t at = 0; (at = all.find(kName, at)) != std::string::npos; ++at) {
        idle = idle && all.compare(all.find("} ", at), 4, "} 0\n") == 0;
      }
      if (idle) return true;
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
  }

 private:
  std::unique_ptr<Router> router_;
  std::thread thread_;
};

// Options for P/D over these stubs, on round robin.
inline RouterOptions pd_options(std::initializer_list<StubWorker*> prefill,
                                std::initializer_list<StubWorker*> decode) {
  RouterOptions options;
  options.pd_disaggregation = true;
  options.disable_health_check = true;
  options.policy = "round_robin";
  for (const StubWorker* worker : prefill) options.prefill.push_back({worker->url(), 8998});
  for (const StubWorker* worker : decode) options.decode.push_back(worker->url());
  return options;
}

// Options without P/D over these stubs.
inline RouterOptions in_front_of(std::initializer_list<const StubWorker*> workers) {
  RouterOptions options;
  options.disable_health_check = true;
  for (const StubWorker* worker : workers) options.workers.push_back(worker->url());
  return options;
}

// A script that answers nothing and notes that the router closed the connection.
inline StubWorker::Script wait_for_close(Gate& closed) {
  return [&closed](StubPeer& peer, const StubRequest&) {
    if (peer.wait_closed()) closed.open();
    peer.close();
  };
}

}  // namespace kvl::test
