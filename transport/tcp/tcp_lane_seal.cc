// An encrypted lane: frames go through records on their way to and from the socket. What arrives is
// in the lane's own buffers until it has been authenticated, and only then copied to pages.
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "transport/tcp/tcp_lane.h"

namespace kvl::tcp {

void Lane::encrypt(crypto::Bytes out, crypto::Bytes in) { seal_ = std::make_unique<Seal>(out, in); }

void Lane::drop_seal() {
  if (seal_ == nullptr) return;
  if (seal_->tx != nullptr) core_.seal_pool.give(seal_->tx);
  if (seal_->rx != nullptr) core_.seal_pool.give(seal_->rx);
  seal_.reset();
}

bool Lane::tx_sealed() const { return seal_ != nullptr && !seal_->sealer.idle(); }

bool Lane::rx_sealed() const {
  return seal_ != nullptr && seal_->rx != nullptr && seal_->opener.ready(*seal_->rx);
}

// Seals the beginning of the chunk; flush_sealed() sends it. Returns the bytes of the chunk that
// are done with, or -1 and errno.
ssize_t Lane::transmit_sealed() {
  if (seal_->tx == nullptr) seal_->tx = core_.seal_pool.take();
  const std::size_t taken = seal_->sealer.seal(
      std::span(tx_->vectors).subspan(tx_next_, tx_count_ - tx_next_), *seal_->tx);
  tx_offered_ = taken;
  if (taken > 0) return static_cast<ssize_t>(taken);
  errno = EOVERFLOW;
  return -1;
}

Status Lane::flush_sealed() {
  const std::span<const std::byte> left = seal_->sealer.pending(*seal_->tx);
  const ssize_t n = ::send(fd_.get(), left.data(), left.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  core_.counters.send_calls.add();
  if (n < 0) {
    if (errno == EINTR) return {};
    tx_blocked_ = errno == EAGAIN;
    return tx_blocked_ ? Status{} : Status{Code::peer_lost, "send on a data lane", errno};
  }
  core_.counters.bytes_sent.add(static_cast<std::uint64_t>(n));
  seal_->sealer.sent(static_cast<std::size_t>(n));
  tx_blocked_ = static_cast<std::size_t>(n) < left.size();
  if (seal_->sealer.idle()) {
    core_.seal_pool.give(seal_->tx);
    seal_->tx = nullptr;
  }
  return {};
}

// The next record behind what is buffered, or more bytes for it.
Status Lane::read_sealed(std::uint64_t& received) {
  if (rx_sealed()) {
    if (rx_begin_ > 0) {
      std::memmove(rx_->bytes.data(), rx_->bytes.data() + rx_begin_, rx_end_ - rx_begin_);
      rx_end_ -= rx_begin_;
      rx_begin_ = 0;
    }
    std::size_t bytes = 0;
    const Status status = seal_->opener.open(*seal_->rx, rx_->bytes.data() + rx_end_, bytes);
    if (!status.ok()) {
      core_.counters.records_refused.add();
      return status;
    }
    rx_end_ += bytes;
    received += bytes;
    if (seal_->opener.idle()) {
      core_.seal_pool.give(seal_->rx);
      seal_->rx = nullptr;
    }
    return {};
  }
  if (seal_->rx == nullptr) seal_->rx = core_.seal_pool.take();
  const std::span<std::byte> room = seal_->opener.room(*seal_->rx);
  const ssize_t n = ::recv(fd_.get(), room.data(), room.size(), MSG_DONTWAIT);
  core_.counters.receive_calls.add();
  if (n < 0) {
    if (errno == EINTR) return {};
    if (errno != EAGAIN) return {Code::peer_lost, "receive on a data lane", errno};
    rx_ready_ = false;
    if (seal_->opener.idle()) {
      core_.seal_pool.give(seal_->rx);
      seal_->rx = nullptr;
    }
    return {};
  }
  if (n == 0) return {Code::peer_lost, "data lane closed by the peer"};
  if (static_cast<std::size_t>(n) < room.size() && !rx_hung_up_) rx_ready_ = false;
  seal_->opener.received(static_cast<std::size_t>(n));
  core_.counters.bytes_received.add(static_cast<std::uint64_t>(n));
  return {};
}

}  // namespace kvl::tcp
