// sendmsg() and the bookkeeping of what it left.
#include "router/http/output.h"

#include <sys/socket.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

namespace kvl::http {

Output::Outcome Output::send(int fd, Parts& parts) {
  assert(count_ == 0);
  return push(fd, parts.all());
}

Output::Outcome Output::resume(int fd) {
  return push(fd, {rest_.data(), std::exchange(count_, 0)});
}

Output::Outcome Output::push(int fd, std::span<iovec> parts) {
  while (!parts.empty()) {
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const ssize_t sent = ::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) return Outcome::failed;
      std::copy(parts.begin(), parts.end(), rest_.begin());
      count_ = parts.size();
      return Outcome::pending;
    }
    auto left = static_cast<std::size_t>(sent);
    while (!parts.empty() && left >= parts.front().iov_len) {
      left -= parts.front().iov_len;
      parts = parts.subspan(1);
    }
    if (left > 0) {
      parts.front().iov_base = static_cast<char*>(parts.front().iov_base) + left;
      parts.front().iov_len -= left;
    }
  }
  return Outcome::done;
}

}  // namespace kvl::http
