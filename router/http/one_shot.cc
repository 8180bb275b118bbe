// The user of one upstream call that keeps itself alive until the answer or the deadline.
#include "router/http/one_shot.h"

#include <algorithm>
#include <utility>

namespace kvl::http {
namespace {

class OneShot final : public UpstreamUser, public Timed {
 public:
  OneShot(OneShotDone done, std::string text, std::size_t answer_bytes_max)
      : done_(std::move(done)), text_(std::move(text)), answer_bytes_max_(answer_bytes_max) {}

  void start(std::shared_ptr<OneShot> self, Loop& loop, UpstreamPool& pool, double timeout_secs) {
    self_ = std::move(self);
    loop.watch(*this);
    set_deadline(after_seconds(timeout_secs));
    connection_ = pool.take();
    Parts parts;
    parts.add(text_);
    connection_->send(*this, parts, timeout_secs);
  }

  bool on_head(const ResponseHead& head) override {
    status_ = head.status;
    return true;
  }
  void on_data(const Pieces& pieces, bool last) override {
    for (std::size_t i = 0; i < pieces.count; ++i) {
      const std::size_t room = answer_bytes_max_ - answer_.size();
      answer_.append(pieces.list[i].substr(0, room));
    }
    connection_->consumed();
    if (last) finish(status_, {});
  }
  void on_broken(const Status& why) override { finish(0, why); }
  void on_deadline() override {
    connection_->abandon();
    finish(0, {Code::timed_out, "wait for a worker's answer"});
  }

 private:
  void finish(int status, Status why) {
    clear_deadline();
    const auto self = std::move(self_);
    const auto connection = std::move(connection_);
    const OneShotDone done = std::move(done_);
    done(status, answer_, why);
  }

  OneShotDone done_;
  std::string text_, answer_;
  const std::size_t answer_bytes_max_;
  int status_ = 0;
  std::shared_ptr<OneShot> self_;
  std::shared_ptr<Upstream> connection_;
};

}  // namespace

void call_once(Loop& loop, UpstreamPool& pool, const OneShotRequest& request, OneShotDone done) {
  std::string text(request.method);
  text.append(" ").append(request.path).append(" HTTP/1.1\r\nHost: ");
  text.append(pool.url().authority()).append("\r\n");
  text.append(request.headers);
  if (!request.body.empty() || request.method != "GET") {
    text.append("Content-Type: application/json\r\nContent-Length: ");
    text.append(std::to_string(request.body.size())).append("\r\n");
  }
  text.append("\r\n").append(request.body);
  const auto call =
      std::make_shared<OneShot>(std::move(done), std::move(text), request.answer_bytes_max);
  call->start(call, loop, pool, request.timeout_secs);
}

}  // namespace kvl::http
