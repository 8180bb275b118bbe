// The router's paths: which request is relayed, which is answered here.
#pragma once

#include <functional>
#include <string>

#include "router/api/context.h"
#include "router/http/session.h"

namespace kvl::router {

// One per loop.
class Api final : public http::RequestHandler {
 public:
  // `metrics` gives the text of /metrics, for the whole process.
  Api(LoopContext& context, std::function<std::string()> metrics);

  void handle(http::Session& session) override;

  struct Route {
    std::string_view path;    // exact, or a prefix when it ends with '/'
    std::string_view method;  // GET also takes HEAD
    void (Api::*run)(http::Session& session);
  };

 private:
  void relay(http::Session& session);            // the requests that this is all for
  void pass(http::Session& session);             // to one worker, as it is
  void fan_out(http::Session& session);          // to all workers
  void health(http::Session& session);           // this process
  void readiness(http::Session& session);        // this process and enough workers
  void health_generate(http::Session& session);  // a worker of each role
  void metrics(http::Session& session);
  void list_workers(http::Session& session);
  void add_worker(http::Session& session);
  void remove_worker(http::Session& session);
  void show_worker(http::Session& session);

  LoopContext& context_;
  std::function<std::string()> metrics_;
};

// An error answer in the shapes of http::error_body().
void reply_error(http::Session& session, int status, std::string_view type,
                 std::string_view message);

}  // namespace kvl::router
