// The one call that sends, and MSG_ZEROCOPY for pages that are worth it.
//
// Only pages of our own writes go without a copy: their memory is held until the peer has
// acknowledged the batch, and by then it has every byte, so that no retransmission can read them.
// Header blocks are always copied, because their buffer is used again at once.
// clang-format off
#include <time.h>  // errqueue.h wants timespec and does not say so
#include <linux/errqueue.h>
// clang-format on
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "transport/tcp/tcp_lane.h"

namespace kvl::tcp {

void Lane::enable_zerocopy(std::uint64_t bytes_min) {
  const int one = 1;
  if (::setsockopt(fd_.get(), SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one)) == 0) {
    tx_zerocopy_min_ = bytes_min;
  }
}

bool Lane::zerocopy_pays(const iovec& vector) const {
  const auto* const at = static_cast<const std::byte*>(vector.iov_base);
  const bool in_head = at >= tx_->head.data() && at < tx_->head.data() + TxBuffers::kHeadBytes;
  return !in_head && vector.iov_len >= tx_zerocopy_min_;
}

// Sends the rest of the chunk, or as much of it as goes the same way.
ssize_t Lane::transmit() {
  std::size_t end = tx_count_;
  int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
  tx_offered_ = tx_left_;
  if (tx_zerocopy_min_ > 0 && tx_ref_ == SIZE_MAX && tx_stage_ < 0) {
    const bool pays = zerocopy_pays(tx_->vectors[tx_next_]);
    end = tx_next_;
    for (tx_offered_ = 0; end < tx_count_ && zerocopy_pays(tx_->vectors[end]) == pays; ++end) {
      tx_offered_ += tx_->vectors[end].iov_len;
    }
    if (pays) flags |= MSG_ZEROCOPY;
    if (end < tx_count_) flags |= MSG_MORE;
  }
  msghdr message{};
  message.msg_iov = tx_->vectors.data() + tx_next_;
  message.msg_iovlen = end - tx_next_;
  const ssize_t n = ::sendmsg(fd_.get(), &message, flags);
  if (n < 0 && errno == ENOBUFS && (flags & MSG_ZEROCOPY) != 0) {
    // Too many notices outstanding (net.core.optmem_max): this part is copied.
    return ::sendmsg(fd_.get(), &message, flags & ~MSG_ZEROCOPY);
  }
  return n;
}

bool Lane::take_notices() {
  if (tx_zerocopy_min_ == 0) return false;
  while (true) {
    std::array<std::byte, 128> control;
    msghdr message{};
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    if (::recvmsg(fd_.get(), &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) break;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
         part = CMSG_NXTHDR(&message, part)) {
      sock_extended_err notice;
      std::memcpy(&notice, CMSG_DATA(part), sizeof(notice));
      // The kernel had to copy after all (loopback, a device without scatter-gather): the notices
      // are then only a cost.
      if (notice.ee_origin == SO_EE_ORIGIN_ZEROCOPY &&
          (notice.ee_code & SO_EE_CODE_ZEROCOPY_COPIED) != 0) {
        tx_zerocopy_min_ = UINT64_MAX;
      }
      core_.counters.zerocopy_notices.add();
    }
  }
  int error = 0;
  socklen_t bytes = sizeof(error);
  return ::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 && error == 0;
}

}  // namespace kvl::tcp
