// One blocking HTTP request with a deadline, over a connection of its own. Control plane only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kvl/status.h"

namespace kvl::bootstrap {

struct HttpTarget {
  std::string host;
  std::string port;
};

// "http://host:port", "http://[v6]:port", a trailing '/' allowed. invalid_argument.
Result<HttpTarget> parse_target(std::string_view url);

struct HttpAnswer {
  int status = 0;
  std::string body;
};

// unavailable: no connection; timed_out; corrupt: not HTTP, or an answer beyond 256 MiB.
Result<HttpAnswer> http_call(const HttpTarget& target, std::string_view method,
                             std::string_view path, std::string_view body,
                             std::uint32_t timeout_ms);

}  // namespace kvl::bootstrap
