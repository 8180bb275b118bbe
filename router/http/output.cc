// sendmsg() and the bookkeeping of what it left.
#include "router/http/output.h"

#include <sys/socket.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

namespace kvl::http {

Output::Outcome Output::send(Stream& stream, Parts& parts) {
  assert(!pending_);
  return push(stream, parts.all());
}

Output::Outcome Output::resume(Stream& stream) {
  pending_ = false;
  return push(stream, {rest_.data(), std::exchange(count_, 0)});
}

Output::Outcome Output::keep(std::span<iovec> parts, TlsChannel::Want waits_for) {
  std::copy(parts.begin(), parts.end(), rest_.begin());
  count_ = parts.size();
  pending_ = true;
  waits_for_ = waits_for;
  return Outcome::pending;
}

Output::Outcome Output::push_secure(TlsChannel& tls, std::span<iovec> parts) {
  const TlsChannel::Want want = tls.write(parts);
  if (want == TlsChannel::Want::nothing) return Outcome::done;
  if (want == TlsChannel::Want::read || want == TlsChannel::Want::write) return keep(parts, want);
  return Outcome::failed;
}

Output::Outcome Output::push(Stream& stream, std::span<iovec> parts) {
  if (TlsChannel* const tls = stream.tls()) return push_secure(*tls, parts);
  const int fd = stream.socket().native_handle();
  while (!parts.empty()) {
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const ssize_t sent = ::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) return Outcome::failed;
      return keep(parts, TlsChannel::Want::write);
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
