// Non-blocking sockets under epoll on both sides.
#include "bench/support/http_load.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>

namespace kvl::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kAnswer =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 64\r\n\r\n"
    "{\"text\":\"0123456789012345678901234567890123456789\",\"meta\":\"abc\"}";
static_assert(kAnswer.size() - kAnswer.find("\r\n\r\n") - 4 == 64);

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

int listen_on_any(std::uint16_t& port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  sockaddr_in address = loopback(0);
  socklen_t size = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(fd, generic, size) != 0 || ::listen(fd, 1024) != 0 ||
      ::getsockname(fd, generic, &size) != 0) {
    std::abort();
  }
  port = ntohs(address.sin_port);
  return fd;
}

void watch(int epoll, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

void no_delay(int fd) {
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

// Bytes of the first whole message in `text`, 0 when it is not complete yet.
std::size_t message_bytes(std::string_view text) {
  const std::size_t end = text.find("\r\n\r\n");
  if (end == std::string_view::npos) return 0;
  constexpr std::string_view kLength = "Content-Length: ";
  const std::size_t at = text.substr(0, end).find(kLength);
  const std::size_t length = at == std::string_view::npos
                                 ? 0
                                 : std::strtoull(text.data() + at + kLength.size(), nullptr, 10);
  return text.size() >= end + 4 + length ? end + 4 + length : 0;
}

}  // namespace

std::uint16_t free_port() {
  std::uint16_t port = 0;
  ::close(listen_on_any(port));
  return port;
}

StubServer::StubServer(std::size_t ports) : epoll_(::epoll_create1(0)) {
  for (std::size_t i = 0; i < ports; ++i) {
    std::uint16_t port = 0;
    listeners_.push_back(listen_on_any(port));
    ports_.push_back(port);
    watch(epoll_, listeners_.back());
  }
}

void StubServer::run() {
  std::map<int, std::string> connections;
  std::array<epoll_event, 64> events{};
  std::array<char, 65536> bytes{};
  while (true) {
    const int count = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
    for (int i = 0; i < count; ++i) {
      const int fd = events[static_cast<std::size_t>(i)].data.fd;
      if (std::find(listeners_.begin(), listeners_.end(), fd) != listeners_.end()) {
        const int accepted = ::accept4(fd, nullptr, nullptr, SOCK_NONBLOCK);
        if (accepted < 0) continue;
        no_delay(accepted);
        watch(epoll_, accepted);
        connections[accepted].clear();
        continue;
      }
      std::string& text = connections[fd];
      const ssize_t got = ::recv(fd, bytes.data(), bytes.size(), 0);
      if (got <= 0) {
        if (got < 0 && errno == EAGAIN) continue;
        connections.erase(fd);
        ::close(fd);
        continue;
      }
      text.append(bytes.data(), static_cast<std::size_t>(got));
      while (const std::size_t message = message_bytes(text)) {
        text.erase(0, message);
        if (::send(fd, kAnswer.data(), kAnswer.size(), MSG_NOSIGNAL) < 0) break;
      }
    }
  }
}

LoadResult run_load(const LoadOptions& options) {
  const std::string request = "POST " + options.path +
                              " HTTP/1.1\r\nHost: bench\r\nUser-Agent: router_bench\r\nAccept: */*"
                              "\r\nContent-Type: application/json\r\nContent-Length: " +
                              std::to_string(options.body.size()) + "\r\n\r\n" + options.body;
  struct Connection {
    int fd = -1;
    std::string text;
    Clock::time_point sent;
  };
  std::vector<Connection> connections(options.connections);
  LoadResult result;
  const int epoll = ::epoll_create1(0);
  const sockaddr_in address = loopback(options.port);
  std::size_t open = 0;
  const auto send_next = [&](Connection& connection) {
    connection.sent = Clock::now();
    const ssize_t sent = ::send(connection.fd, request.data(), request.size(), MSG_NOSIGNAL);
    return sent == static_cast<ssize_t>(request.size());
  };
  for (std::size_t i = 0; i < connections.size(); ++i) {
    Connection& connection = connections[i];
    connection.fd = ::socket(AF_INET, SOCK_STREAM, 0);
    no_delay(connection.fd);
    // A server that has only just started may not listen yet.
    int tries = 200;
    while (::connect(connection.fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) !=
               0 &&
           --tries > 0) {
      ::usleep(10000);
    }
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = i;
    ::epoll_ctl(epoll, EPOLL_CTL_ADD, connection.fd, &event);
  }
  const Clock::time_point start = Clock::now();
  const auto end = start + std::chrono::duration_cast<Clock::duration>(
                               std::chrono::duration<double>(options.seconds));
  for (Connection& connection : connections) open += send_next(connection) ? 1 : 0;
  result.failed += connections.size() - open;
  std::array<epoll_event, 64> events{};
  std::array<char, 65536> bytes{};
  while (open > 0) {
    const int count = ::epoll_wait(epoll, events.data(), static_cast<int>(events.size()), 5000);
    if (count <= 0) {
      result.failed += open;
      break;
    }
    for (int i = 0; i < count; ++i) {
      Connection& connection = connections[events[static_cast<std::size_t>(i)].data.u64];
      const ssize_t got = ::recv(connection.fd, bytes.data(), bytes.size(), 0);
      if (got <= 0) {
        ++result.failed;
        --open;
        ::epoll_ctl(epoll, EPOLL_CTL_DEL, connection.fd, nullptr);
        continue;
      }
      connection.text.append(bytes.data(), static_cast<std::size_t>(got));
      if (message_bytes(connection.text) == 0) continue;
      const Clock::time_point now = Clock::now();
      if (connection.text.starts_with("HTTP/1.1 200")) {
        ++result.requests;
        result.latency_us.push_back(
            std::chrono::duration<double, std::micro>(now - connection.sent).count());
      } else {
        ++result.failed;
      }
      connection.text.clear();
      if (now >= end || !send_next(connection)) --open;
    }
  }
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  for (const Connection& connection : connections) ::close(connection.fd);
  ::close(epoll);
  return result;
}

}  // namespace kvl::bench
