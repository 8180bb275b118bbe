// The router's paths: which request is relayed, which is answered here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "kvl/http_token.h"
#include "router/api/context.h"
#include "router/http/session.h"

namespace kvl::router {

// What clients must show; shared by all loops.
struct ApiAccess {
  HttpTokens tokens;  // of the secret
  HttpTokens api_keys;
  bool open() const { return tokens.empty() && api_keys.empty(); }
};

// One per loop.
class Api final : public http::RequestHandler {
 public:
  // `metrics` gives the text of /metrics, for the whole process.
  Api(LoopContext& context, std::function<std::string()> metrics, const ApiAccess& access);

  void handle(http::Session& session) override;

  // Who a path is for.
  enum class Access : std::uint8_t {
    anybody,
    clients,    // an API key, or the secret's token
    operators,  // the token
  };

  struct Route {
    std::string_view path;    // exact, or a prefix when it ends with '/'
    std::string_view method;  // GET also takes HEAD
    void (Api::*run)(http::Session& session);
    Access access = Access::clients;
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

  bool allowed(const http::Session& session, Access needed) const;

  LoopContext& context_;
  std::function<std::string()> metrics_;
  const ApiAccess& access_;
};

// An error answer in the shapes of http::error_body().
void reply_error(http::Session& session, int status, std::string_view type,
                 std::string_view message);

}  // namespace kvl::router
