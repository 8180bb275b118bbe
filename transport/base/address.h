// "host:port" texts and socket addresses. Numeric hosts and names; IPv6 in brackets.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/status.h"

namespace kvl {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t bytes = 0;

  const sockaddr* raw() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* raw() { return reinterpret_cast<sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
  std::uint16_t port() const;
  bool any() const;          // 0.0.0.0 or [::]
  bool loopback() const;     // 127.0.0.0/8, [::1] or [::ffff:127.0.0.0/104]
  std::string text() const;  // "10.0.0.1:4711", "[::1]:4711"
};

// Splits "host:port"; resolves names (blocking, for names only). invalid_argument: not of that form
// or not resolvable.
Result<SocketAddress> parse_address(std::string_view text);
// Addresses of this host that are up, not link-local; loopback last. Port 0.
std::vector<SocketAddress> local_addresses();

}  // namespace kvl
