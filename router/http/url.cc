// Parsing of worker URLs and of queries.
#include "router/http/url.h"

#include <algorithm>
#include <charconv>

namespace kvl::http {
namespace {

std::optional<std::uint16_t> parse_port(std::string_view text) {
  std::uint16_t port = 0;
  const auto [end, errc] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (errc != std::errc{} || end != text.data() + text.size() || port == 0) return std::nullopt;
  return port;
}

bool is_host(std::string_view text, bool v6) {
  return !text.empty() && text.size() <= 253 && std::all_of(text.begin(), text.end(), [v6](char c) {
    const bool name = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                      c == '.' || c == '-' || c == '_';
    return name || (v6 && (c == ':' || c == '%'));
  });
}

}  // namespace

std::optional<Url> parse_url(std::string_view text) {
  Url url;
  url.tls = text.starts_with("https://");
  if (url.tls) text.remove_prefix(8);
  if (!url.tls && text.starts_with("http://")) text.remove_prefix(7);
  if (text.ends_with('/')) text.remove_suffix(1);
  std::string_view port;
  if (text.starts_with('[')) {
    const std::size_t close = text.find(']');
    if (close == std::string_view::npos) return std::nullopt;
    url.v6 = true;
    url.host = text.substr(1, close - 1);
    port = text.substr(close + 1);
  } else {
    const std::size_t colon = std::min(text.find(':'), text.size());
    url.host = text.substr(0, colon);
    port = text.substr(colon);
  }
  if (!is_host(url.host, url.v6)) return std::nullopt;
  url.port = url.tls ? 443 : 80;
  if (port.empty()) return url;
  if (port.front() != ':') return std::nullopt;
  const std::optional<std::uint16_t> number = parse_port(port.substr(1));
  if (!number.has_value()) return std::nullopt;
  url.port = *number;
  return url;
}

std::optional<std::string> percent_decode(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+') {
      out += ' ';
    } else if (text[i] != '%') {
      out += text[i];
    } else {
      unsigned value = 0;
      if (text.size() - i < 3) return std::nullopt;
      const char* const digits = text.data() + i + 1;
      if (std::from_chars(digits, digits + 2, value, 16).ptr != digits + 2) return std::nullopt;
      out += static_cast<char>(value);
      i += 2;
    }
  }
  return out;
}

std::optional<std::string> query_value(std::string_view query, std::string_view name) {
  while (!query.empty()) {
    const std::string_view item = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), item.size() + 1));
    const std::size_t equals = std::min(item.find('='), item.size());
    if (item.substr(0, equals) != name) continue;
    return percent_decode(item.substr(std::min(item.size(), equals + 1)));
  }
  return std::nullopt;
}

}  // namespace kvl::http
