// One blocking HTTP request with a deadline, over a connection of its own. Control plane only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "kvl/status.h"
#include "kvl/tls.h"

namespace kvl::bootstrap {

struct HttpTarget {
  std::string host;
  std::string port;
  bool tls = false;
};

// What a call shows and wants to see.
struct HttpAccess {
  std::string token;                // signs the call; "": none
  std::shared_ptr<TlsContext> tls;  // needed for a target with tls
};

// "http://host:port", "https://host:port", "http://[v6]:port", a trailing '/' allowed.
// invalid_argument.
Result<HttpTarget> parse_target(std::string_view url);

struct HttpAnswer {
  int status = 0;
  std::string body;
};

// unavailable: no connection; permission: no TLS that is trusted here; timed_out; corrupt: not
// HTTP, or an answer beyond 256 MiB.
Result<HttpAnswer> http_call(const HttpTarget& target, const HttpAccess& access,
                             std::string_view method, std::string_view path, std::string_view body,
                             std::uint32_t timeout_ms);

}  // namespace kvl::bootstrap
