// System calls around data sockets.
#include "transport/tcp/tcp_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

namespace kvl::tcp {
namespace {

template <typename T>
void set_option(int fd, int level, int name, T value) {
  // Best effort: a kernel that lacks the option works without it.
  ::setsockopt(fd, level, name, &value, sizeof(value));
}

void set_buffers(int fd, const TcpConfig& config) {
  if (config.send_buffer_bytes > 0) {
    set_option(fd, SOL_SOCKET, SO_SNDBUF, static_cast<int>(config.send_buffer_bytes));
  }
  if (config.recv_buffer_bytes > 0) {
    set_option(fd, SOL_SOCKET, SO_RCVBUF, static_cast<int>(config.recv_buffer_bytes));
  }
}

void set_port(SocketAddress& address, std::uint16_t port) {
  // sin_port and sin6_port lie at the same place.
  reinterpret_cast<sockaddr_in*>(&address.storage)->sin_port = htons(port);
}

Result<SocketAddress> bind_address(const std::string& text) {
  return parse_address(text.find(':') == std::string::npos ? text + ":0" : "[" + text + "]:0");
}

// Of this host: 127.0.0.1, or ::1 where there is no IPv4.
std::string loopback_text() {
  const std::vector<SocketAddress> all = local_addresses();
  const bool v4 = std::any_of(all.begin(), all.end(), [](const SocketAddress& address) {
    return address.family() == AF_INET && address.loopback();
  });
  return v4 || all.empty() ? "127.0.0.1" : "::1";
}

Status bind_and_listen(int fd, const SocketAddress& address) {
  if (::bind(fd, address.raw(), address.bytes) != 0 || ::listen(fd, SOMAXCONN) != 0) {
    return {Code::unavailable, "listen on tcp.bind; is it an address of this host?", errno};
  }
  return {};
}

std::span<const std::byte> host_bytes(const SocketAddress& address) {
  if (address.family() == AF_INET6) {
    return std::as_bytes(
        std::span(&reinterpret_cast<const sockaddr_in6*>(&address.storage)->sin6_addr, 1));
  }
  return std::as_bytes(
      std::span(&reinterpret_cast<const sockaddr_in*>(&address.storage)->sin_addr, 1));
}

int shared_prefix_bits(const SocketAddress& a, const SocketAddress& b) {
  if (a.family() != b.family()) return 0;
  const auto x = host_bytes(a), y = host_bytes(b);
  int bits = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto difference = std::to_integer<unsigned>(x[i] ^ y[i]);
    if (difference != 0) return bits + __builtin_clz(difference) - 24;
    bits += 8;
  }
  return bits;
}

// What a lane to `to` must come from, so that it leaves by the interface that was named; no bytes:
// the kernel may choose.
SocketAddress source_for(const SocketAddress& to, const TcpConfig& config) {
  if (!config.bind.empty()) {
    const auto from = bind_address(config.bind);
    return from && !from->any() && from->family() == to.family() ? *from : SocketAddress{};
  }
  if (config.interface.empty() || to.loopback()) return {};
  for (const SocketAddress& own : offered_addresses(config, 0)) {
    if (own.family() == to.family()) return own;
  }
  return {};
}

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash ^= value;
  hash *= 0x9E3779B97F4A7C15ULL;
  return hash ^ (hash >> 29);
}

}  // namespace

Result<UniqueFd> listen_data(const TcpConfig& config, bool same_host, SocketAddress& bound) {
  constexpr int kType = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  SocketAddress address;
  UniqueFd fd;
  if (!config.bind.empty() || same_host) {
    auto wanted = bind_address(config.bind.empty() ? loopback_text() : config.bind);
    if (!wanted) return wanted.status();
    address = *wanted;
    fd.reset(::socket(address.family(), kType, 0));
  } else {
    auto* const v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
    v6->sin6_family = AF_INET6;
    address.bytes = sizeof(sockaddr_in6);
    fd.reset(::socket(AF_INET6, kType, 0));
    if (fd) set_option(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
    if (!fd || ::bind(fd.get(), address.raw(), address.bytes) != 0) {
      address.storage = {};
      address.storage.ss_family = AF_INET;
      address.bytes = sizeof(sockaddr_in);
      fd.reset(::socket(AF_INET, kType, 0));
    } else {
      address.bytes = 0;  // bound already
    }
  }
  if (!fd) return Status{Code::exhausted, "socket", errno};
  set_buffers(fd.get(), config);
  if (address.bytes != 0) {
    KVL_TRY(bind_and_listen(fd.get(), address));
  } else if (::listen(fd.get(), SOMAXCONN) != 0) {
    return Status{Code::unavailable, "listen", errno};
  }
  bound.bytes = sizeof(bound.storage);
  if (::getsockname(fd.get(), bound.raw(), &bound.bytes) != 0) {
    return Status{Code::internal, "getsockname", errno};
  }
  return fd;
}

std::vector<SocketAddress> offered_addresses(const TcpConfig& config, std::uint16_t port) {
  std::vector<SocketAddress> all;
  if (!config.bind.empty()) {
    if (auto bound = bind_address(config.bind); bound && !bound->any()) all.push_back(*bound);
  }
  if (all.empty() && !config.interface.empty()) {
    ifaddrs* list = nullptr;
    if (::getifaddrs(&list) == 0) {
      for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
        if (entry->ifa_addr == nullptr || config.interface != entry->ifa_name) continue;
        const int family = entry->ifa_addr->sa_family;
        if (family != AF_INET && family != AF_INET6) continue;
        SocketAddress address;
        address.bytes = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
        std::memcpy(&address.storage, entry->ifa_addr, address.bytes);
        // A link-local address means nothing to a peer that does not know our link.
        if (family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(host_bytes(address).data())) continue;
        all.push_back(address);
      }
      ::freeifaddrs(list);
    }
  } else if (all.empty()) {
    all = local_addresses();
  }
  if (all.size() > kOfferAddressesMax) {
    // Keep one loopback address: two processes of one host always have that.
    std::swap(all[kOfferAddressesMax - 1], all.back());
    all.resize(kOfferAddressesMax);
  }
  for (SocketAddress& address : all) set_port(address, port);
  return all;
}

Token host_identity() {
  std::array<char, 64> boot{};
  const UniqueFd fd(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  if (fd) [[maybe_unused]]
    const ssize_t n = ::read(fd.get(), boot.data(), boot.size());
  struct stat ns {};
  ::stat("/proc/self/ns/net", &ns);
  std::uint64_t a = mix(1, ns.st_ino), b = mix(2, ns.st_dev);
  for (const char c : boot) {
    a = mix(a, static_cast<unsigned char>(c));
    b = mix(b, a);
  }
  Token token;
  std::memcpy(token.data(), &a, 8);
  std::memcpy(token.data() + 8, &b, 8);
  return token;
}

Result<Token> random_token() {
  Token token;
  if (::getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    return Status{Code::internal, "getrandom", errno};
  }
  return token;
}

std::vector<SocketAddress> dial_order(const Offer& offer, const Token& own_host) {
  const bool same_host = same_token(offer.host, own_host);
  const std::vector<SocketAddress> ours = local_addresses();
  std::vector<std::pair<int, SocketAddress>> ranked;
  for (const SocketAddress& address : offer.addresses) {
    int rank = 0;
    if (address.loopback()) {
      if (!same_host) continue;
      rank = 1000 + (address.family() == AF_INET ? 1 : 0);
    }
    for (const SocketAddress& own : ours) rank = std::max(rank, shared_prefix_bits(address, own));
    ranked.emplace_back(rank, address);
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<SocketAddress> order;
  order.reserve(ranked.size());
  for (const auto& [rank, address] : ranked) order.push_back(address);
  return order;
}

Result<UniqueFd> dial(const SocketAddress& to, const TcpConfig& config) {
  UniqueFd fd(::socket(to.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return Status{Code::exhausted, "socket", errno};
  set_buffers(fd.get(), config);
  const SocketAddress from = source_for(to, config);
  if (from.bytes != 0 && ::bind(fd.get(), from.raw(), from.bytes) != 0) {
    return Status{Code::unavailable, "bind a data lane to tcp.bind or tcp.interface", errno};
  }
  if (::connect(fd.get(), to.raw(), to.bytes) != 0 && errno != EINPROGRESS) {
    return Status{Code::unavailable, "connect a data lane", errno};
  }
  return fd;
}

std::string remote_text(int fd) {
  SocketAddress there;
  there.bytes = sizeof(there.storage);
  return ::getpeername(fd, there.raw(), &there.bytes) == 0 ? there.text() : "?";
}

Status tune_lane(int fd, const TcpConfig& config, bool same_host) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  if (config.busy_poll_us > 0) {
    set_option(fd, SOL_SOCKET, SO_BUSY_POLL, static_cast<int>(config.busy_poll_us));
  }
  if (config.user_timeout_ms > 0) {
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<unsigned>(config.user_timeout_ms));
  }
  if (config.keepalive_s > 0) {
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, static_cast<int>(config.keepalive_s));
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, static_cast<int>(config.keepalive_s));
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
  }
  const bool automatic = config.congestion == "auto";
  if (config.congestion.empty() || config.congestion == "system" || (automatic && !same_host)) {
    return {};
  }
  // A pacing algorithm (bbr) halves what a loopback interface can do; reno does not pace.
  const std::string name = automatic ? "reno" : config.congestion;
  if (::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name.data(),
                   static_cast<socklen_t>(name.size())) != 0 &&
      !automatic) {
    return {Code::unsupported,
            "tcp.congestion; see /proc/sys/net/ipv4/tcp_available_congestion_control", errno};
  }
  return {};
}

}  // namespace kvl::tcp
