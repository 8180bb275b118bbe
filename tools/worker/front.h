// The worker's HTTP endpoints: from requests to the scheduler and back.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "worker/api.h"
#include "worker/http_server.h"
#include "worker/scheduler.h"

namespace kvl::worker {

struct FrontOptions {
  ApiOptions api;
  std::string role;
  // JSON objects for /get_model_info and /get_server_info.
  std::string model_info;
  std::string server_info;
  // Prometheus text.
  std::function<std::string()> metrics;
};

// Handler of an HttpServer. The scheduler outlives it.
class Front {
 public:
  Front(FrontOptions options, Scheduler& scheduler)
      : options_(std::move(options)), scheduler_(scheduler) {}

  // Called by the server's thread.
  void handle(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply);

 private:
  struct Running;
  void generate(ApiForm form, const HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void start(Call call, const std::shared_ptr<HttpReply>& reply, bool health);
  void abort(const HttpRequest& request, HttpReply& reply);
  bool look_up(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply);

  FrontOptions options_;
  Scheduler& scheduler_;
  std::uint64_t calls_ = 0;
};

}  // namespace kvl::worker
