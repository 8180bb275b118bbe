// Heads of HTTP/1.1 requests and responses: found, split and checked, without a copy. Everything
// here points into the bytes that were parsed. Strict where leniency has been exploited (line ends,
// folding, two lengths); RFC 9112.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace kvl::http {

constexpr std::size_t kHeadBytesMax = 64 << 10;
constexpr std::size_t kHeadersMax = 96;

struct Header {
  std::string_view name, value;
};

// The headers of one message and what they say about its body and connection.
struct Headers {
  std::span<const Header> all() const { return {list.data(), count}; }
  // The first value of a header, by name in any case; "" when absent.
  std::string_view find(std::string_view name) const;

  std::array<Header, kHeadersMax> list;
  std::size_t count = 0;
  std::optional<std::uint64_t> content_length;
  bool chunked = false;
  bool keep_alive = true;  // version and Connection taken together
};

struct RequestHead {
  std::string_view method, target;
  Headers headers;
  bool http_1_0 = false;
  bool expect_continue = false;
  std::size_t bytes = 0;  // of the head, with the empty line
  std::string_view path() const { return target.substr(0, target.find('?')); }
  std::string_view query() const;
};

struct ResponseHead {
  int status = 0;
  std::string_view reason;
  Headers headers;
  std::size_t bytes = 0;
};

enum class Parse : std::uint8_t {
  complete,
  incomplete,   // more bytes are needed
  bad,          // not HTTP/1.x, or not safely so
  too_large,    // head beyond kHeadBytesMax or kHeadersMax
  unsupported,  // a transfer coding other than chunked, another major version
};

// `scanned` remembers how far the end of the head was looked for, so that a head that comes byte by
// byte is not searched anew; it starts at 0 with each head.
Parse parse_request_head(std::string_view data, std::size_t& scanned, RequestHead& out);
Parse parse_response_head(std::string_view data, std::size_t& scanned, ResponseHead& out);

// ASCII, any case.
bool equals_no_case(std::string_view a, std::string_view b);

}  // namespace kvl::http
