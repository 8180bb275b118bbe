// "http://host:port", "https://host:port" and what follows '?': parsed without tolerance.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvl::http {

struct Url {
  std::string host;  // without brackets
  std::uint16_t port = 0;
  bool v6 = false;
  bool tls = false;  // https

  std::string host_text() const { return v6 ? "[" + host + "]" : host; }  // as in a URL
  std::string authority() const { return host_text() + ":" + std::to_string(port); }
  std::string text() const { return (tls ? "https://" : "http://") + authority(); }
};

// "http://host[:port]", "https://host[:port]" or "host:port", a trailing '/' allowed; nothing for
// anything else.
std::optional<Url> parse_url(std::string_view text);

// The value of `name` in "a=1&b=2", percent-decoded; nothing when absent or badly encoded.
std::optional<std::string> query_value(std::string_view query, std::string_view name);

// '%41' -> 'A', '+' -> ' '; nothing on a bad escape.
std::optional<std::string> percent_decode(std::string_view text);

}  // namespace kvl::http
