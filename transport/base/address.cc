// Socket addresses from and to text.
#include "transport/base/address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>

namespace kvl {
namespace {

const sockaddr_in& v4(const SocketAddress& a) {
  return reinterpret_cast<const sockaddr_in&>(a.storage);
}
const sockaddr_in6& v6(const SocketAddress& a) {
  return reinterpret_cast<const sockaddr_in6&>(a.storage);
}

}  // namespace

std::uint16_t SocketAddress::port() const {
  return ntohs(family() == AF_INET6 ? v6(*this).sin6_port : v4(*this).sin_port);
}

bool SocketAddress::any() const {
  if (family() == AF_INET6) return IN6_IS_ADDR_UNSPECIFIED(&v6(*this).sin6_addr);
  return v4(*this).sin_addr.s_addr == htonl(INADDR_ANY);
}

bool SocketAddress::loopback() const {
  if (family() == AF_INET) return ntohl(v4(*this).sin_addr.s_addr) >> 24 == 127;
  const in6_addr& host = v6(*this).sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&host) || (IN6_IS_ADDR_V4MAPPED(&host) && host.s6_addr[12] == 127);
}

std::string SocketAddress::text() const {
  char host[INET6_ADDRSTRLEN] = "?";
  if (family() == AF_INET6) {
    ::inet_ntop(AF_INET6, &v6(*this).sin6_addr, host, sizeof(host));
    // append, not operator+: gcc 12 warns falsely (restrict) at -O3.
    return std::string("[").append(host).append("]:").append(std::to_string(port()));
  }
  ::inet_ntop(AF_INET, &v4(*this).sin_addr, host, sizeof(host));
  return std::string(host) + ":" + std::to_string(port());
}

Result<SocketAddress> parse_address(std::string_view text) {
  // The resolver reads C strings: what comes after a 0 would not be looked at.
  if (text.find('\0') != std::string_view::npos) {
    return Status{Code::invalid_argument, "address has a zero byte"};
  }
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon + 1 == text.size()) {
    return Status{Code::invalid_argument, "address must be HOST:PORT or [IPV6]:PORT"};
  }
  std::string host(text.substr(0, colon));
  const std::string port(text.substr(colon + 1));
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string::npos) {
    return Status{Code::invalid_argument, "write IPv6 addresses in brackets: [::1]:4711"};
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (host.empty() || ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) {
    return Status{Code::invalid_argument, "address cannot be resolved"};
  }
  SocketAddress address;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.bytes = found->ai_addrlen;
  ::freeaddrinfo(found);
  return address;
}

std::vector<SocketAddress> local_addresses() {
  std::vector<SocketAddress> all;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return all;
  std::size_t loopbacks = 0;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    SocketAddress address;
    address.bytes = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    std::memcpy(&address.storage, entry->ifa_addr, address.bytes);
    if (family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&v6(address).sin6_addr)) continue;
    if ((entry->ifa_flags & IFF_LOOPBACK) != 0) {
      all.push_back(address);
      ++loopbacks;
    } else {
      all.insert(all.end() - static_cast<std::ptrdiff_t>(loopbacks), address);
    }
  }
  ::freeifaddrs(list);
  return all;
}

}  // namespace kvl
