// Receiving: a header block into the lane's buffer, then its data straight into the pages, with the
// next header block as the last vector of the same call.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "transport/tcp/tcp_lane.h"

namespace kvl::tcp {

Status Lane::receive(std::uint64_t bytes_max) {
  std::uint64_t received = 0;
  rx_held_ = false;
  for (int calls = 0;; ++calls) {
    KVL_TRY(consume());
    if (rx_held_ || !(rx_ready_ || rx_sealed()) || received >= bytes_max || calls == kCallsMax)
      break;
    if (core_.backlog()) break;
    KVL_TRY(read_more(received));
  }
  if (rx_ != nullptr && !rx_in_data_ && rx_begin_ == rx_end_) {
    core_.rx_pool.give(rx_);
    rx_ = nullptr;
    rx_begin_ = rx_end_ = 0;
  }
  return {};
}

// Works through what has been received, as far as it goes.
Status Lane::consume() {
  while (true) {
    if (rx_in_data_) {
      if (rx_staged_) {
        KVL_TRY(consume_staged());
      } else {
        scatter(std::min<std::uint64_t>(rx_end_ - rx_begin_, rx_left_));
        if (rx_left_ == 0) {
          rx_in_data_ = false;
          KVL_TRY(finish_frame());
        }
      }
      if (rx_in_data_) return {};
      continue;
    }
    const std::size_t have = rx_end_ - rx_begin_;
    if (have < sizeof(FrameHeader)) return {};
    const std::byte* const at = rx_->bytes.data() + rx_begin_;
    const auto header = read_wire<FrameHeader>(at);
    const std::size_t bytes = head_bytes(header);
    if (bytes == 0) return {Code::corrupt, "not a frame"};
    if (have < bytes) return {};
    if (core_.backlog()) {
      rx_held_ = true;
      return {};
    }
    rx_begin_ += bytes;
    core_.counters.frames_received.add();
    rx_bulk_ = header.data_bytes > kCopyBytesMax && header.type != FrameType::read_request;
    // Behind the data of a read come the end of that read and the header of the next.
    rx_head_guess_ = header.type == FrameType::write ? bytes : 2 * sizeof(FrameHeader);
    KVL_TRY(begin_frame(header, at + sizeof(FrameHeader)));
  }
}

// Copies buffered data to its place.
void Lane::scatter(std::size_t bytes) {
  const bool guarded = rx_header_.type == FrameType::write;
  std::array<iovec, 64> parts;
  while (bytes > 0) {
    if (guarded && !core_.memory.enter(rx_epoch_)) {
      revalidate_rx();
      continue;
    }
    const std::size_t count = rx_list_.fill(parts.data(), parts.size(), bytes, core_.drain.get());
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(parts[i].iov_base, rx_->bytes.data() + rx_begin_, parts[i].iov_len);
      rx_begin_ += parts[i].iov_len;
      rx_left_ -= parts[i].iov_len;
      bytes -= parts[i].iov_len;
    }
    if (guarded) core_.memory.leave();
  }
}

void Lane::revalidate_rx() {
  const auto lock = core_.memory.lock();
  rx_epoch_ = core_.memory.epoch();
  if (!core_.memory.revalidate(rx_list_)) return;
  if (in_code_ == Code::ok) in_code_ = Code::permission;
  rx_list_.seek(rx_header_.data_bytes - rx_left_);
  rx_next_ = rx_count_ = 0;
}

Status Lane::read_more(std::uint64_t& received) {
  if (rx_ == nullptr) rx_ = core_.rx_pool.take();
  if (rx_begin_ == rx_end_) rx_begin_ = rx_end_ = 0;
  if (seal_ != nullptr) return read_sealed(received);
  std::size_t wanted = 0;
  const ssize_t n = !rx_in_data_ ? read_head(wanted)
                    : rx_staged_ ? read_stage(wanted)
                                 : read_data(wanted);
  if (wanted == 0) return {};  // interrupted or to be repeated
  core_.counters.receive_calls.add();
  if (n < 0) {
    if (errno == EINTR) return {};
    if (errno != EAGAIN) return {Code::peer_lost, "receive on a data lane", errno};
    rx_ready_ = false;
    return {};
  }
  if (n == 0) return {Code::peer_lost, "data lane closed by the peer"};
  // A short read has emptied the socket; more bytes will raise an edge.
  if (static_cast<std::size_t>(n) < wanted && !rx_hung_up_) rx_ready_ = false;
  received += static_cast<std::uint64_t>(n);
  core_.counters.bytes_received.add(static_cast<std::uint64_t>(n));
  return {};
}

ssize_t Lane::read_head(std::size_t& wanted) {
  if (rx_begin_ > 0) {
    std::memmove(rx_->bytes.data(), rx_->bytes.data() + rx_begin_, rx_end_ - rx_begin_);
    rx_end_ -= rx_begin_;
    rx_begin_ = 0;
  }
  // In a stream of large frames no more than the header block, so that pages are not copied.
  wanted = RxBuffers::kBytes - rx_end_;
  if (rx_bulk_) {
    std::size_t block = std::max(rx_head_guess_, sizeof(FrameHeader));
    if (rx_end_ >= sizeof(FrameHeader)) {
      block = head_bytes(read_wire<FrameHeader>(rx_->bytes.data()));
    }
    if (block > rx_end_) wanted = std::min(wanted, block - rx_end_);
  }
  const ssize_t n = ::recv(fd_.get(), rx_->bytes.data() + rx_end_, wanted, MSG_DONTWAIT);
  if (n > 0) rx_end_ += static_cast<std::size_t>(n);
  return n;
}

ssize_t Lane::read_stage(std::size_t& wanted) {
  Stage& stage = rx_stages_[rx_stage_];
  wanted = std::min<std::uint64_t>(rx_left_, Bounce::kBytes - stage.bytes);
  const ssize_t n =
      ::recv(fd_.get(), stage.bounce->bytes.data() + stage.bytes, wanted, MSG_DONTWAIT);
  if (n > 0) {
    stage.bytes += static_cast<std::uint64_t>(n);
    rx_left_ -= static_cast<std::uint64_t>(n);
  }
  return n;
}

ssize_t Lane::read_data(std::size_t& wanted) {
  const bool guarded = rx_header_.type == FrameType::write;
  if (guarded && !core_.memory.enter(rx_epoch_)) {
    revalidate_rx();
    return 0;
  }
  std::size_t tail = 0;
  if (rx_next_ == rx_count_) {
    rx_next_ = 0;
    rx_count_ =
        rx_list_.fill(rx_->vectors.data(), rx_->vectors.size() - 1, UINT64_MAX, core_.drain.get());
    rx_vectors_bytes_ = rx_list_.position() - (rx_header_.data_bytes - rx_left_);
  }
  std::size_t count = rx_count_ - rx_next_;
  if (rx_list_.done()) {
    tail = rx_bulk_ ? rx_head_guess_ : RxBuffers::kBytes;
    rx_->vectors[rx_count_] = {rx_->bytes.data(), tail};
    ++count;
  }
  wanted = rx_vectors_bytes_ + tail;
  const ssize_t n = ::readv(fd_.get(), rx_->vectors.data() + rx_next_, static_cast<int>(count));
  const int error = errno;
  if (guarded) core_.memory.leave();
  errno = error;
  if (n <= 0) return n;
  std::uint64_t left = std::min(static_cast<std::uint64_t>(n), rx_vectors_bytes_);
  rx_end_ = static_cast<std::uint64_t>(n) - left;
  rx_vectors_bytes_ -= left;
  rx_left_ -= left;
  while (left > 0) {
    iovec& v = rx_->vectors[rx_next_];
    if (left < v.iov_len) {
      v = {static_cast<std::byte*>(v.iov_base) + left, v.iov_len - left};
      break;
    }
    left -= v.iov_len;
    ++rx_next_;
  }
  return n;
}

}  // namespace kvl::tcp
