// Collects the answers of several workers into one JSON object.
#include "router/api/fan_out.h"

#include "router/http/message.h"
#include "router/http/one_shot.h"

namespace kvl::router {
namespace {

constexpr double kTimeoutSecs = 30;

}  // namespace

void FanOut::start(LoopContext& context, http::Session& session,
                   const std::vector<WorkerPtr>& workers, std::string_view method,
                   std::string_view path, const std::string& body) {
  const auto self = std::make_shared<FanOut>(session);
  session.attach(*self);
  self->waiting_ = workers.size();
  for (const WorkerPtr& worker : workers) {
    http::call_once(context.loop(), context.pool(*worker),
                    {.method = method, .path = path, .body = body, .timeout_secs = kTimeoutSecs},
                    [self, worker](int status, std::string_view, const Status& why) {
                      self->answered(*worker, status, why);
                    });
  }
  if (workers.empty()) self->finish();
}

void FanOut::answered(const Worker& worker, int status, const Status& why) {
  const bool good = status >= 200 && status < 300;
  all_good_ = all_good_ && good;
  if (!lines_.empty()) lines_ += ',';
  lines_ += "{\"url\":" + http::json_quote(worker.url.text()) +
            ",\"status\":" + std::to_string(status) +
            (status == 0 ? ",\"error\":" + http::json_quote(why.to_string()) : "") + "}";
  if (--waiting_ == 0) finish();
}

void FanOut::finish() {
  if (const auto session = std::move(session_)) {
    session->reply({.status = all_good_ ? 200 : 503, .body = "{\"workers\":[" + lines_ + "]}"});
  }
}

}  // namespace kvl::router
