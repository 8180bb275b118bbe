// One half of a request: the call to one worker, with the worker's books kept.
#pragma once

#include <memory>
#include <vector>

#include "router/api/context.h"
#include "router/http/upstream.h"

namespace kvl::router {

class Leg;

// What a request is to the books of a worker.
struct Charge {
  std::uint64_t prefill_tokens = 0;  // until its first answer
  std::uint64_t context_tokens = 0;  // until its end
};

// What happens on a leg, told to the exchange that it belongs to.
class LegOwner {
 public:
  // Whose failure an answer of 500 or more is: the leg's own, or the other one's.
  virtual Leg& at_fault(Leg& leg, const http::ResponseHead& head) = 0;
  virtual bool on_leg_head(Leg& leg, const http::ResponseHead& head) = 0;  // true: gather the body
  virtual void on_leg_data(Leg& leg, const http::Pieces& pieces, bool last) = 0;
  virtual void on_leg_broken(Leg& leg, const Status& why) = 0;

 protected:
  ~LegOwner() = default;
};

class Leg final : public http::UpstreamUser {
 public:
  Leg(LoopContext& context, LegOwner& owner) : context_(context), owner_(owner) {}
  ~Leg() { release(); }

  // Takes the worker into the books: it counts as loaded from here until release().
  void assign(WorkerPtr worker, Charge charge);
  void send(const http::Parts& request);
  // Ends the call, whatever its state: silently, with the connection.
  void cancel();
  // The answer's last bytes were used (or thrown away): the connection returns to its pool.
  void consumed(bool last);

  bool active() const { return connection_ != nullptr; }  // sent and not over
  bool assigned() const { return worker_ != nullptr; }
  bool request_sent() const { return connection_ == nullptr || connection_->request_sent(); }
  // The last failure was that of a kept-alive connection that had grown old, not the worker's.
  bool stale() const { return stale_; }
  const WorkerPtr& worker() const { return worker_; }
  int status() const { return status_; }

  // Workers of this role that have failed this request. The first old connection is forgiven.
  std::vector<std::uint32_t> tried;
  bool forgave_stale = false;

 private:
  bool on_head(const http::ResponseHead& head) override;
  void on_data(const http::Pieces& pieces, bool last) override;
  void on_broken(const Status& why) override;
  void release();
  void release_prefill();

  LoopContext& context_;
  LegOwner& owner_;
  WorkerPtr worker_;
  std::shared_ptr<http::Upstream> connection_;
  bool counted_ = false;  // in worker_->in_flight
  Charge charge_;         // still in the worker's books
  bool stale_ = false;
  int status_ = 0;
};

}  // namespace kvl::router
