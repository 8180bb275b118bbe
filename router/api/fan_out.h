// One small request to several workers; one answer when all have answered or a limit has passed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "router/api/context.h"
#include "router/http/session.h"

namespace kvl::router {

class FanOut final : public http::SessionUser, public std::enable_shared_from_this<FanOut> {
 public:
  // 200 when every worker answers below 300, else 503; the body says what each answered.
  static void start(LoopContext& context, http::Session& session,
                    const std::vector<WorkerPtr>& workers, std::string_view method,
                    std::string_view path, const std::string& body);

  explicit FanOut(http::Session& session) : session_(session.shared_from_this()) {}

 private:
  void on_written() override {}
  void on_client_gone() override { session_.reset(); }
  void answered(const Worker& worker, int status, const Status& why);
  void finish();

  std::shared_ptr<http::Session> session_;
  std::size_t waiting_ = 0;
  bool all_good_ = true;
  std::string lines_;
};

}  // namespace kvl::router
