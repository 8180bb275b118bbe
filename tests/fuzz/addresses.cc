// Addresses, worker URLs, rendezvous URLs and queries.
#include <algorithm>

#include "kvcache/bootstrap/http_call.h"
#include "router/http/url.h"
#include "tests/fuzz/fuzz.h"
#include "transport/base/address.h"

namespace kvl::fuzz {
namespace {

// Names would be resolved: only what can be nothing but a number is tried here.
bool numeric(std::string_view text) {
  const std::string_view host = text.substr(0, text.rfind(':'));
  const bool digits = std::all_of(host.begin(), host.end(),
                                  [](char c) { return (c >= '0' && c <= '9') || c == '.'; });
  const bool v6 = host.starts_with('[') && host.find(':') != std::string_view::npos;
  return digits || v6;
}

}  // namespace

void fuzz_addresses(Bytes input) {
  const std::string_view text = text_of(input);
  if (numeric(text)) {
    if (const auto address = parse_address(text)) {
      const auto again = parse_address(address->text());
      require(again.ok() && again->text() == address->text(), "an address has one text");
      require(text.find('\0') == std::string_view::npos, "an address has no end inside");
    }
  }
  if (const auto url = http::parse_url(text)) {
    require(url->port != 0 && !url->host.empty(), "a URL names a host and a port");
    require(url->host.find_first_of(std::string_view("/ \r\n\0@?#", 8)) == std::string::npos,
            "a host is only a host");
    const std::string again =
        (url->v6 ? "[" + url->host + "]" : url->host) + ":" + std::to_string(url->port);
    const auto parsed = http::parse_url(again);
    require(parsed && parsed->host == url->host && parsed->port == url->port, "a URL's parts");
  }
  if (const auto target = bootstrap::parse_target(text)) {
    require(!target->host.empty() && !target->port.empty(), "a target names a host and a port");
    require(target->host.find_first_of(std::string_view("/ \r\n\0@?#", 8)) == std::string::npos,
            "a rendezvous' host is only a host");
  }
  if (const auto decoded = http::percent_decode(text)) {
    require(decoded->size() <= text.size(), "decoding does not grow");
  }
  (void)http::query_value(text, "instance");
}

Seeds seeds_addresses() {
  return {seed("127.0.0.1:4711"),        seed("[::1]:80"),
          seed("http://10.0.0.1:8000/"), seed("http://[fe80::1%25eth0]:30000"),
          seed("http://worker-1:8998"),  seed("instance=a%2Fb&cluster=c+d"),
          seed("cluster=&instance=%zz"), seed("0x7f.1:65535")};
}

}  // namespace kvl::fuzz
