// Books of a leg: in-flight counts, and what its answer says about the worker.
#include "router/api/leg.h"

#include <utility>

namespace kvl::router {

void Leg::assign(WorkerPtr worker, Charge charge) {
  release();
  worker_ = std::move(worker);
  charge_ = charge;
  worker_->in_flight.fetch_add(1, std::memory_order_relaxed);
  worker_->prefill_tokens.fetch_add(charge.prefill_tokens, std::memory_order_relaxed);
  worker_->context_tokens.fetch_add(charge.context_tokens, std::memory_order_relaxed);
  counted_ = true;
  stale_ = false;
  status_ = 0;
}

void Leg::release() {
  if (!std::exchange(counted_, false)) return;
  release_prefill();
  worker_->in_flight.fetch_sub(1, std::memory_order_relaxed);
  worker_->context_tokens.fetch_sub(charge_.context_tokens, std::memory_order_relaxed);
}

void Leg::release_prefill() {
  worker_->prefill_tokens.fetch_sub(std::exchange(charge_.prefill_tokens, 0),
                                    std::memory_order_relaxed);
}

void Leg::send(const http::Parts& request) {
  worker_->requests_total.fetch_add(1, std::memory_order_relaxed);
  connection_ = context_.pool(*worker_).take();
  connection_->send(*this, request, context_.options().connect_timeout_secs);
}

void Leg::cancel() {
  if (const auto connection = std::move(connection_)) connection->abandon();
  release();
}

void Leg::consumed(bool last) {
  if (!last) return connection_->consumed();
  const auto connection = std::move(connection_);
  release();
  connection->consumed();
}

bool Leg::on_head(const http::ResponseHead& head) {
  status_ = head.status;
  if (status_ < 500) {
    context_.fleet().succeeded(*worker_);
  } else {
    Worker& worker = *owner_.at_fault(*this, head).worker_;
    const bool own = &worker == worker_.get();
    context_.fleet().failed(
        worker, own ? WorkerFault::error_answer : WorkerFault::blamed,
        (own ? "" : worker_->url.text() + " ") + "answers " + std::to_string(status_));
  }
  return owner_.on_leg_head(*this, head);
}

void Leg::on_data(const http::Pieces& pieces, bool last) {
  if (pieces.bytes > 0) release_prefill();
  owner_.on_leg_data(*this, pieces, last);
}

void Leg::on_broken(const Status& why) {
  const auto connection = std::move(connection_);
  release();
  stale_ = connection->reused() && !connection->answer_started() && why.code() == Code::peer_lost;
  if (!stale_) {
    context_.fleet().failed(*worker_, fault_of(why.code()), why.context());
  }
  owner_.on_leg_broken(*this, why);
}

}  // namespace kvl::router
