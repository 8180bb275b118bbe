// Connecting and commanding the raw-socket baseline; raw_socket_session.cc moves the bytes.
#include "bench/support/raw_socket.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <thread>

#include "bench/support/raw_socket_session.h"
#include "transport/base/unique_fd.h"

namespace kvl::bench {
namespace {

constexpr std::uint32_t kGreetingMagic = 0x5241574b;
constexpr int kConnectionsMax = 256;

// The first bytes of every connection.
struct Greeting {
  std::uint32_t magic, index, connections, threads;
};

struct NumericAddress {
  sockaddr_storage storage{};
  socklen_t bytes = 0;
  sockaddr* raw() { return reinterpret_cast<sockaddr*>(&storage); }
};

Result<NumericAddress> numeric(const std::string& text, std::uint16_t port) {
  NumericAddress address;
  auto* const v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
  auto* const v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
  if (::inet_pton(AF_INET, text.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    address.bytes = sizeof(sockaddr_in);
  } else if (::inet_pton(AF_INET6, text.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    address.bytes = sizeof(sockaddr_in6);
  } else {
    return Status{Code::invalid_argument, "raw sockets want a numeric address"};
  }
  return address;
}

// Before connect() and listen(), so that the window scale fits the buffers.
Status tune(int fd, const RawSocketOptions& options) {
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  if (!options.congestion.empty() && options.congestion != "system" &&
      options.congestion != "auto" &&
      ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, options.congestion.c_str(),
                   static_cast<socklen_t>(options.congestion.size())) != 0) {
    return {Code::unsupported, "TCP_CONGESTION; see net.ipv4.tcp_available_congestion_control",
            errno};
  }
  if (options.send_buffer_bytes > 0) {
    ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &options.send_buffer_bytes, sizeof(int));
  }
  if (options.recv_buffer_bytes > 0) {
    ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &options.recv_buffer_bytes, sizeof(int));
  }
  return {};
}

void choose_reno(int fd) { ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4); }

// "auto" means what it means to the tcp transport: reno between processes of one host.
void tune_connected(int fd, const RawSocketOptions& options) {
  if (options.congestion != "auto") return;
  NumericAddress here, there;
  here.bytes = there.bytes = sizeof(sockaddr_storage);
  if (::getsockname(fd, here.raw(), &here.bytes) != 0 ||
      ::getpeername(fd, there.raw(), &there.bytes) != 0) {
    return;
  }
  const auto host = [](const NumericAddress& address) {
    if (address.storage.ss_family == AF_INET6) {
      const auto& in6 = reinterpret_cast<const sockaddr_in6&>(address.storage).sin6_addr;
      return std::string(reinterpret_cast<const char*>(&in6), sizeof(in6));
    }
    const auto& in4 = reinterpret_cast<const sockaddr_in&>(address.storage).sin_addr;
    return std::string(reinterpret_cast<const char*>(&in4), sizeof(in4));
  };
  if (host(here) == host(there)) choose_reno(fd);
}

std::string congestion_of(int fd) {
  std::array<char, 64> name{};
  socklen_t bytes = name.size() - 1;
  ::getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name.data(), &bytes);
  return name.data();
}

bool shape_ok(std::uint32_t connections, std::uint32_t threads) {
  return connections > 0 && connections <= kConnectionsMax && threads > 0 &&
         threads <= connections && connections % threads == 0;
}

// Runs f(i) for every session, each in a thread of its own; alone: in this one.
template <typename F>
void for_sessions(std::size_t count, F f) {
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < count; ++i) threads.emplace_back([&f, i] { f(i); });
  f(std::size_t{0});
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

Result<std::unique_ptr<RawSocketServer>> RawSocketServer::open(const RawSocketOptions& options,
                                                               std::span<std::byte> memory,
                                                               const std::string& address) {
  auto at = numeric(address, 0);
  if (!at) return at.status();
  std::unique_ptr<RawSocketServer> server(new RawSocketServer(options, memory));
  server->listener_ = ::socket(at->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (server->listener_ < 0) return Status{Code::exhausted, "socket", errno};
  KVL_TRY(tune(server->listener_, options));
  if (::bind(server->listener_, at->raw(), at->bytes) != 0 ||
      ::listen(server->listener_, kConnectionsMax) != 0 ||
      ::getsockname(server->listener_, at->raw(), &at->bytes) != 0) {
    return Status{Code::unavailable, "listen", errno};
  }
  // sin_port and sin6_port lie at the same place.
  server->port_ = ntohs(reinterpret_cast<sockaddr_in*>(&at->storage)->sin_port);
  return server;
}

RawSocketServer::~RawSocketServer() {
  if (listener_ >= 0) ::close(listener_);
}

Status RawSocketServer::serve() {
  std::vector<int> fds;
  Greeting shape{};
  Status status;
  do {
    pollfd wait{listener_, POLLIN, 0};
    if (::poll(&wait, 1, options_.timeout_ms) <= 0) {
      status = {Code::timed_out, "no client of the raw baseline"};
      break;
    }
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) continue;
    Greeting greeting{};
    if (!receive_all(fd, &greeting, sizeof(greeting), options_.timeout_ms).ok() ||
        greeting.magic != kGreetingMagic || !shape_ok(greeting.connections, greeting.threads) ||
        greeting.index >= greeting.connections) {
      ::close(fd);
      continue;
    }
    status = tune(fd, options_);
    tune_connected(fd, options_);
    if (fds.empty()) {
      shape = greeting;
      fds.resize(shape.connections, -1);
    }
    if (greeting.connections != shape.connections || fds[greeting.index] >= 0) {
      ::close(fd);
      continue;
    }
    fds[greeting.index] = fd;
  } while (status.ok() && (fds.empty() || std::find(fds.begin(), fds.end(), -1) != fds.end()));
  if (!status.ok()) {
    for (const int fd : fds) {
      if (fd >= 0) ::close(fd);
    }
    return status;
  }
  const std::size_t each = shape.connections / shape.threads;
  std::vector<std::unique_ptr<RawSocketSession>> sessions;
  for (std::size_t i = 0; i < shape.threads; ++i) {
    const auto first = fds.begin() + static_cast<std::ptrdiff_t>(i * each);
    sessions.push_back(std::make_unique<RawSocketSession>(
        std::vector<int>(first, first + static_cast<std::ptrdiff_t>(each)), memory_, options_));
  }
  std::vector<Status> ends(sessions.size());
  for_sessions(sessions.size(), [&](std::size_t i) { ends[i] = sessions[i]->serve(); });
  for (const Status& end : ends) KVL_TRY(end);
  return {};
}

RawSocketClient::RawSocketClient(const RawSocketOptions& options, std::span<std::byte> memory)
    : options_(options), memory_(memory) {}
RawSocketClient::~RawSocketClient() = default;

Result<std::unique_ptr<RawSocketClient>> RawSocketClient::open(const RawSocketOptions& options,
                                                               std::span<std::byte> memory,
                                                               const std::string& address,
                                                               std::uint16_t port) {
  if (!shape_ok(static_cast<std::uint32_t>(options.connections),
                static_cast<std::uint32_t>(options.threads))) {
    return Status{Code::invalid_argument, "connections must be a multiple of threads"};
  }
  auto to = numeric(address, port);
  if (!to) return to.status();
  std::unique_ptr<RawSocketClient> client(new RawSocketClient(options, memory));
  const int each = options.connections / options.threads;
  for (int thread = 0; thread < options.threads; ++thread) {
    auto session = std::make_unique<RawSocketSession>(std::vector<int>{}, memory, options);
    for (int i = 0; i < each; ++i) {
      const int fd = ::socket(to->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (fd < 0) return Status{Code::exhausted, "socket", errno};
      session->adopt(fd);
      KVL_TRY(tune(fd, options));
      if (::connect(fd, to->raw(), to->bytes) != 0) {
        return Status{Code::unavailable, "connect to the raw baseline", errno};
      }
      make_nonblocking(fd);
      tune_connected(fd, options);
      const Greeting greeting{kGreetingMagic, static_cast<std::uint32_t>(thread * each + i),
                              static_cast<std::uint32_t>(options.connections),
                              static_cast<std::uint32_t>(options.threads)};
      KVL_TRY(send_all(fd, &greeting, sizeof(greeting), options.timeout_ms));
    }
    client->sessions_.push_back(std::move(session));
  }
  return client;
}

Status RawSocketClient::configure(const RawPlan& plan) {
  const std::size_t pages = plan.client_pages.size();
  if (pages == 0 || pages != plan.server_pages.size() || pages < sessions_.size()) {
    return {Code::invalid_argument, "page lists of unequal length"};
  }
  for (std::size_t i = 0; i < sessions_.size(); ++i) {
    const auto begin = static_cast<std::ptrdiff_t>(pages * i / sessions_.size());
    const auto end = static_cast<std::ptrdiff_t>(pages * (i + 1) / sessions_.size());
    RawPlan part{plan.direction, plan.page_bytes, {}, {}};
    part.client_pages.assign(plan.client_pages.begin() + begin, plan.client_pages.begin() + end);
    part.server_pages.assign(plan.server_pages.begin() + begin, plan.server_pages.begin() + end);
    KVL_TRY(sessions_[i]->configure(part));
  }
  return {};
}

Result<RawRun> RawSocketClient::run(std::uint64_t batches, std::uint32_t inflight) {
  const double cpu = process_cpu_seconds();
  std::vector<RawRun> runs(sessions_.size());
  std::vector<Status> ends(sessions_.size());
  for_sessions(sessions_.size(), [&](std::size_t i) {
    auto run = sessions_[i]->run(batches, inflight);
    ends[i] = run.status();
    if (run) runs[i] = std::move(*run);
  });
  RawRun all = std::move(runs[0]);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    KVL_TRY(ends[i]);
    if (i == 0) continue;
    all.seconds = std::max(all.seconds, runs[i].seconds);
    all.bytes += runs[i].bytes;
  }
  all.client_cpu_seconds = process_cpu_seconds() - cpu;
  return all;
}

Result<RawRun> RawSocketClient::ping_pong(std::uint64_t rounds, std::uint32_t bytes,
                                          std::uint32_t answer_bytes) {
  return sessions_[0]->ping_pong(rounds, bytes, answer_bytes);
}

std::string RawSocketClient::congestion() const { return congestion_of(sessions_[0]->first_fd()); }

Result<std::string> congestion_in_force(const RawSocketOptions& options, bool same_host) {
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return Status{Code::exhausted, "socket", errno};
  KVL_TRY(tune(fd.get(), options));
  if (options.congestion == "auto" && same_host) choose_reno(fd.get());
  return congestion_of(fd.get());
}

}  // namespace kvl::bench
