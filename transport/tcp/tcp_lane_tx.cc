// Sending: chunks of up to 1,024 vectors that hold header blocks and pages in turn.
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "transport/tcp/tcp_lane.h"

namespace kvl::tcp {
namespace {

constexpr std::size_t kRunsWorthAChunk = 256;
// No frame is begun in a chunk of this size: what is in a chunk cannot be cancelled or overtaken by
// an acknowledgement any more.
constexpr std::uint64_t kChunkBytes = 2 << 20;

}  // namespace

bool Lane::tx_has_work() const {
  return tx_left_ > 0 || tx_sealed() || tx_data_ != Data::none || !acks_.empty() ||
         !serves_.empty() || !writes_.empty() || (!reads_.empty() && may_ask());
}

Status Lane::send(std::uint64_t bytes_max) {
  std::uint64_t sent = 0;
  for (int calls = 0; !tx_blocked_ && sent < bytes_max && calls < kCallsMax; ++calls) {
    if (tx_sealed()) {
      KVL_TRY(flush_sealed());
      continue;
    }
    if (tx_left_ == 0 && (!tx_has_work() || !build())) break;
    const bool guarded = tx_ref_ != SIZE_MAX;
    if (guarded && !core_.memory.enter(serves_.front().epoch)) {
      revalidate_tx();
      continue;
    }
    const ssize_t n = seal_ != nullptr ? transmit_sealed() : transmit();
    const int error = errno;
    if (guarded) core_.memory.leave();
    if (seal_ == nullptr) core_.counters.send_calls.add();
    if (n < 0) {
      if (error == EINTR) continue;
      tx_blocked_ = error == EAGAIN;
      if (tx_blocked_) break;
      return {Code::peer_lost, "send on a data lane", error};
    }
    auto left = static_cast<std::uint64_t>(n);
    // The kernel took less than offered: it is full and will raise an edge when it is not.
    tx_blocked_ = left < tx_offered_;
    sent += left;
    tx_sent_ += left;
    tx_left_ -= left;
    if (seal_ == nullptr) core_.counters.bytes_sent.add(left);
    while (left > 0) {
      iovec& v = tx_->vectors[tx_next_];
      if (left < v.iov_len) {
        v = {static_cast<std::byte*>(v.iov_base) + left, v.iov_len - left};
        break;
      }
      left -= v.iov_len;
      ++tx_next_;
    }
    if (tx_left_ == 0) chunk_sent();
  }
  if (tx_ != nullptr && tx_left_ == 0 && tx_data_ == Data::none) {
    core_.tx_pool.give(tx_);
    tx_ = nullptr;
  }
  return {};
}

void Lane::chunk_sent() {
  tx_next_ = tx_count_ = tx_head_ = 0;
  tx_ref_ = SIZE_MAX;
  if (tx_stage_ >= 0) {
    tx_stages_[static_cast<std::size_t>(tx_stage_)].reset();
    tx_stage_first_ ^= 1;
    tx_stage_ = -1;
  }
  if (tx_serve_over_) {
    tx_serve_over_ = false;
    pop_serve();
  }
}

// True: the chunk has something to send.
bool Lane::build() {
  if (tx_ == nullptr) tx_ = core_.tx_pool.take();
  while (tx_count_ + 4 < TxBuffers::kVectors && !tx_serve_over_ && tx_stage_ < 0) {
    if (tx_data_ != Data::none) {
      if (!append_data()) break;
    } else if (tx_left_ >= kChunkBytes || !append_frame()) {
      break;
    }
  }
  return tx_left_ > 0;
}

void Lane::commit_head(std::size_t bytes) {
  iovec* const last = tx_count_ > 0 ? &tx_->vectors[tx_count_ - 1] : nullptr;
  if (last != nullptr && static_cast<std::byte*>(last->iov_base) + last->iov_len == head()) {
    last->iov_len += bytes;
  } else {
    tx_->vectors[tx_count_++] = {head(), bytes};
  }
  tx_head_ += bytes;
  tx_left_ += bytes;
  tx_built_ += bytes;
}

// Vectors for the data of the current frame. False: the chunk is as long as it can be for now.
bool Lane::append_data() {
  if (tx_staged_) {
    if (!append_stage()) return false;
  } else {
    const std::uint64_t before = tx_list_.position();
    if (tx_data_ == Data::read && tx_ref_ == SIZE_MAX) tx_ref_ = tx_count_;
    tx_count_ += tx_list_.fill(tx_->vectors.data() + tx_count_, TxBuffers::kVectors - 1 - tx_count_,
                               UINT64_MAX, core_.zeros.get());
    tx_left_ += tx_list_.position() - before;
    tx_built_ += tx_list_.position() - before;
    if (!tx_list_.done()) return false;
  }
  if (tx_data_ == Data::read) {
    append_done(serves_.front());
    tx_serve_over_ = true;  // its runs are needed until the chunk is out
  }
  tx_data_ = Data::none;
  return true;
}

bool Lane::append_frame() {
  if (head_room() < 2048) return false;
  if (append_acks() || append_request()) return true;
  tx_serve_turn_ = !tx_serve_turn_;
  return tx_serve_turn_ ? append_serve() || append_write() : append_write() || append_serve();
}

bool Lane::append_acks() {
  if (acks_.empty()) return false;
  const std::size_t room = (head_room() - sizeof(FrameHeader)) / sizeof(WireAck);
  const std::size_t count = std::min({acks_.size(), room, std::size_t{kFrameAcksMax}});
  FrameHeader header;
  header.type = FrameType::ack;
  header.count = static_cast<std::uint32_t>(count);
  write_wire(head(), header);
  for (std::size_t i = 0; i < count; ++i) {
    write_wire(head() + sizeof(header) + i * sizeof(WireAck), acks_[i]);
  }
  acks_.pop(count);
  commit_head(sizeof(header) + count * sizeof(WireAck));
  core_.counters.frames_sent.add();
  return true;
}

bool Lane::append_request() {
  if (reads_.empty() || !may_ask()) return false;
  OutBatch& b = *reads_.first;
  const std::size_t room = (head_room() - sizeof(FrameHeader)) / sizeof(WireRun);
  const auto runs_max =
      static_cast<std::uint32_t>(std::min({room, static_cast<std::size_t>(core_.config.frame_runs),
                                           std::size_t{kReadRunsMax - asked_runs_}}));
  const CutFrame cut = core_.cut(b, b.cursor, runs_max, head() + sizeof(FrameHeader), nullptr);
  if (cut.stale) {
    b.code = Code::invalid_argument;
    BatchList::remove(b);
    waiting_.push(b);
    if (b.requests_open == 0) core_.finish(b, b.code);
    return true;
  }
  FrameHeader header;
  header.type = FrameType::read_request;
  header.count = cut.runs;
  header.batch = b.id;
  header.data_bytes = cut.bytes;
  write_wire(head(), header);
  commit_head(sizeof(header) + cut.runs * sizeof(WireRun));
  core_.counters.frames_sent.add();
  asked_.push({b.id, cut.bytes, cut.runs, false});
  asked_runs_ += cut.runs;
  ++b.requests_open;
  b.begun = true;
  if (b.cursor.done()) {
    BatchList::remove(b);
    waiting_.push(b);
  }
  return true;
}

bool Lane::append_write() {
  if (writes_.empty()) return false;
  OutBatch& b = *writes_.first;
  FrameHeader header;
  header.batch = b.id;
  CutFrame cut;
  if (b.cancelled) {
    header.flags = kFlagEnd | kFlagAbandoned;
  } else {
    const std::size_t room = (head_room() - sizeof(header) - kNoteBytesMax) / sizeof(WireRun);
    const auto runs_max = static_cast<std::uint32_t>(
        std::min(room, static_cast<std::size_t>(core_.config.frame_runs)));
    // Rather a new chunk than a header block for a handful of runs.
    if (tx_head_ > 0 && room < kRunsWorthAChunk && b.batch.ops.size() > room) return false;
    cut = core_.cut(b, b.cursor, runs_max, head() + sizeof(header), tx_->runs.data());
    if (cut.stale) {
      b.code = Code::invalid_argument;
      b.cancelled = true;
      if (!b.begun) core_.finish(b, b.code);
      return true;
    }
    header.count = cut.runs;
    header.data_bytes = cut.bytes;
    if (b.cursor.done()) {
      header.flags = kFlagEnd;
      header.note_bytes = b.note_bytes;
    }
  }
  write_wire(head(), header);
  const std::size_t runs_bytes = sizeof(header) + cut.runs * sizeof(WireRun);
  std::memcpy(head() + runs_bytes, b.note.data(), header.note_bytes);
  commit_head(runs_bytes + header.note_bytes);
  core_.counters.frames_sent.add();
  b.begun = true;
  if (cut.bytes > 0) {
    tx_data_ = Data::write;
    tx_staged_ = cut.staged;
    tx_list_ = RunList(tx_->runs.data(), 0, ~0U, cut.runs);
  }
  if ((header.flags & kFlagEnd) != 0) {
    b.sent_at = tx_built_ + cut.bytes;
    BatchList::remove(b);
    waiting_.push(b);
  }
  return true;
}

}  // namespace kvl::tcp
