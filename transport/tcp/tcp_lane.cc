// A lane's life: batches come, are cancelled, and are left behind when it dies.
#include "transport/tcp/tcp_lane.h"

#include <algorithm>

namespace kvl::tcp {

Lane::Lane(LinkCore& core, UniqueFd fd, std::uint64_t id)
    : core_(core), fd_(std::move(fd)), id_(id) {}

Lane::~Lane() {
  drop_seal();
  drop_stages();
  if (rx_ != nullptr) core_.rx_pool.give(rx_);
  if (tx_ != nullptr) core_.tx_pool.give(tx_);
}

Status Lane::service(std::uint64_t bytes_max) {
  // Sending first: an answer that the owner has posted since the last call shares a segment with
  // the acknowledgement of what it answers.
  KVL_TRY(send(bytes_max));
  KVL_TRY(receive(bytes_max));
  return fault_;
}

bool Lane::wants_service() const {
  if (phase != Phase::open) return false;
  return rx_ready_ || rx_held_ || rx_sealed() || (!tx_blocked_ && tx_has_work());
}

void Lane::assign(OutBatch& b) {
  b.load = &load_;
  load_ += b.total_bytes;
  (b.writes() ? writes_ : reads_).push(b);
}

void Lane::cancel(OutBatch& b) {
  if (!b.begun) {
    core_.finish(b, Code::aborted);
    return;
  }
  b.cancelled = true;
  // A write that has begun is closed by a frame of its own (append_write). A read asks no more.
  if (b.writes() || b.list != &reads_) return;
  BatchList::remove(b);
  waiting_.push(b);
  if (b.requests_open == 0) core_.finish(b, Code::aborted);
}

void Lane::close() {
  fd_.reset();
  phase = Phase::closed;
  tx_left_ = 0;
  tx_next_ = tx_count_ = 0;
  tx_data_ = Data::none;
  rx_ready_ = rx_held_ = rx_in_data_ = false;
  drop_seal();
}

bool Lane::settle() {
  for (Stage& stage : tx_stages_) {
    if (stage.copying) copy_done(stage, tx_list_);
  }
  for (Stage& stage : rx_stages_) {
    if (stage.copying) copy_done(stage, rx_list_);
  }
  return !stages_busy();
}

}  // namespace kvl::tcp
