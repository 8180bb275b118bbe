// Whole messages over non-blocking sockets, for the raw-socket baseline's commands.
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <cerrno>

#include "bench/support/raw_socket_session.h"

namespace kvl::bench {
namespace {

Status wait_for(int fd, short events, int timeout_ms) {
  pollfd wait{fd, events, 0};
  const int n = ::poll(&wait, 1, timeout_ms);
  if (n == 0) return {Code::timed_out, "raw baseline: silent peer"};
  return {};
}

}  // namespace

double process_cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void make_nonblocking(int fd) { ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); }

Status send_all(int fd, const void* data, std::size_t bytes, int timeout_ms) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::send(fd, from, bytes, MSG_NOSIGNAL);
    if (n > 0) {
      from += n;
      bytes -= static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      KVL_TRY(wait_for(fd, POLLOUT, timeout_ms));
    } else if (errno != EINTR) {
      return {Code::peer_lost, "raw baseline: send", errno};
    }
  }
  return {};
}

Status receive_all(int fd, void* data, std::size_t bytes, int timeout_ms) {
  auto* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::recv(fd, to, bytes, 0);
    if (n > 0) {
      to += n;
      bytes -= static_cast<std::size_t>(n);
    } else if (n == 0) {
      return {Code::peer_lost, "raw baseline: closed"};
    } else if (errno == EAGAIN) {
      KVL_TRY(wait_for(fd, POLLIN, timeout_ms));
    } else if (errno != EINTR) {
      return {Code::peer_lost, "raw baseline: recv", errno};
    }
  }
  return {};
}

}  // namespace kvl::bench
