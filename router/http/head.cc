// Splits heads into lines and lines into names and values, refusing whatever two parsers might read
// in two ways.
#include "router/http/head.h"

#include <algorithm>
#include <charconv>
#include <cstring>

namespace kvl::http {
namespace {

// RFC 9110 token characters.
constexpr std::array<bool, 256> kTokenTable = [] {
  std::array<bool, 256> table{};
  for (int c = '0'; c <= '9'; ++c) table[static_cast<std::size_t>(c)] = true;
  for (int c = 'a'; c <= 'z'; ++c) table[static_cast<std::size_t>(c)] = true;
  for (int c = 'A'; c <= 'Z'; ++c) table[static_cast<std::size_t>(c)] = true;
  for (const char c :
       {'!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~'}) {
    table[static_cast<unsigned char>(c)] = true;
  }
  return table;
}();

bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return kTokenTable[static_cast<unsigned char>(c)];
  });
}

bool is_value(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    const auto u = static_cast<unsigned char>(c);
    return (u >= 0x20 && u != 0x7f) || u == '\t';
  });
}

bool is_visible(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) > 0x20 && static_cast<unsigned char>(c) < 0x7f;
  });
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; }

bool list_contains(std::string_view list, std::string_view word) {
  while (!list.empty()) {
    const std::string_view item = list.substr(0, list.find(','));
    if (equals_no_case(trim(item), word)) return true;
    list.remove_prefix(std::min(list.size(), item.size() + 1));
  }
  return false;
}

// Cuts the next line off; the head ends with an empty line, so there always is a CRLF.
std::string_view next_line(std::string_view& rest) {
  const std::size_t end = rest.find("\r\n");
  const std::string_view line = rest.substr(0, end);
  rest.remove_prefix(end + 2);
  return line;
}

Parse read_length(std::string_view text, std::optional<std::uint64_t>& out) {
  std::uint64_t value = 0;
  const auto [end, errc] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (errc != std::errc{} || end != text.data() + text.size()) return Parse::bad;
  if (out.has_value() && *out != value) return Parse::bad;
  out = value;
  return Parse::complete;
}

Parse parse_headers(std::string_view rest, bool http_1_0, Headers& out) {
  out.count = 0;
  out.content_length.reset();
  out.chunked = false;
  out.keep_alive = !http_1_0;
  while (true) {
    const std::string_view line = next_line(rest);
    if (line.empty()) break;
    if (out.count == kHeadersMax) return Parse::too_large;
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) return Parse::bad;
    const Header header{line.substr(0, colon), trim(line.substr(colon + 1))};
    if (!is_token(header.name) || !is_value(header.value)) return Parse::bad;
    out.list[out.count++] = header;
    // The first letter spares the comparisons for most headers.
    switch (lower(header.name.front())) {
      case 'c':
        if (equals_no_case(header.name, "content-length")) {
          if (read_length(header.value, out.content_length) != Parse::complete) return Parse::bad;
        } else if (equals_no_case(header.name, "connection")) {
          if (list_contains(header.value, "close")) out.keep_alive = false;
          if (http_1_0 && list_contains(header.value, "keep-alive")) out.keep_alive = true;
        }
        break;
      case 't':
        if (equals_no_case(header.name, "transfer-encoding")) {
          if (out.chunked || http_1_0) return Parse::bad;
          if (!equals_no_case(header.value, "chunked")) return Parse::unsupported;
          out.chunked = true;
        }
        break;
      default:
        break;
    }
  }
  // Both: the classic way to make two parsers disagree about where a message ends.
  if (out.chunked && out.content_length.has_value()) return Parse::bad;
  return Parse::complete;
}

Parse find_end(std::string_view data, std::size_t& scanned, std::size_t& bytes) {
  const std::size_t from = scanned < 3 ? 0 : scanned - 3;
  const std::size_t end = data.find("\r\n\r\n", from);
  scanned = data.size();
  if (end != std::string_view::npos) {
    bytes = end + 4;
    return bytes > kHeadBytesMax ? Parse::too_large : Parse::complete;
  }
  return data.size() >= kHeadBytesMax ? Parse::too_large : Parse::incomplete;
}

Parse read_version(std::string_view version, bool& http_1_0) {
  http_1_0 = version == "HTTP/1.0";
  if (http_1_0 || version == "HTTP/1.1") return Parse::complete;
  return version.starts_with("HTTP/") ? Parse::unsupported : Parse::bad;
}

}  // namespace

bool equals_no_case(std::string_view a, std::string_view b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(),
                                            [](char x, char y) { return lower(x) == lower(y); });
}

std::string_view Headers::find(std::string_view name) const {
  for (const Header& header : all()) {
    if (equals_no_case(header.name, name)) return header.value;
  }
  return {};
}

std::string_view RequestHead::query() const {
  const std::size_t mark = target.find('?');
  return mark == std::string_view::npos ? std::string_view{} : target.substr(mark + 1);
}

Parse parse_request_head(std::string_view data, std::size_t& scanned, RequestHead& out) {
  // Garbage is refused at once instead of after 64 KiB of it: a method is a short token.
  const std::string_view start = data.substr(0, 32);
  const std::size_t blank = start.find(' ');
  if (blank == std::string_view::npos) {
    if (start.size() == 32 || (!start.empty() && !is_token(start))) return Parse::bad;
  } else if (!is_token(start.substr(0, blank))) {
    return Parse::bad;
  }
  if (const Parse end = find_end(data, scanned, out.bytes); end != Parse::complete) return end;

  std::string_view rest = data.substr(0, out.bytes);
  std::string_view line = next_line(rest);
  out.method = line.substr(0, line.find(' '));
  line.remove_prefix(std::min(line.size(), out.method.size() + 1));
  out.target = line.substr(0, line.find(' '));
  line.remove_prefix(std::min(line.size(), out.target.size() + 1));
  if (!is_visible(out.target) || out.target.front() != '/') return Parse::bad;
  if (const Parse version = read_version(line, out.http_1_0); version != Parse::complete) {
    return version;
  }
  const Parse parsed = parse_headers(rest, out.http_1_0, out.headers);
  if (parsed != Parse::complete) return parsed;
  out.expect_continue = equals_no_case(out.headers.find("expect"), "100-continue");
  return Parse::complete;
}

Parse parse_response_head(std::string_view data, std::size_t& scanned, ResponseHead& out) {
  constexpr std::string_view kStart = "HTTP/1.";
  if (!kStart.starts_with(data.substr(0, kStart.size())) && !data.starts_with(kStart)) {
    return Parse::bad;
  }
  if (const Parse end = find_end(data, scanned, out.bytes); end != Parse::complete) return end;

  std::string_view rest = data.substr(0, out.bytes);
  const std::string_view line = next_line(rest);
  bool http_1_0 = false;
  if (line.size() < 12 || line[8] != ' ') return Parse::bad;
  if (read_version(line.substr(0, 8), http_1_0) != Parse::complete) return Parse::bad;
  const char* const code = line.data() + 9;
  if (std::from_chars(code, code + 3, out.status).ptr != code + 3) return Parse::bad;
  if (out.status < 100 || (line.size() > 12 && line[12] != ' ')) return Parse::bad;
  out.reason = line.size() > 13 ? line.substr(13) : std::string_view{};
  if (!is_value(out.reason)) return Parse::bad;
  return parse_headers(rest, http_1_0, out.headers);
}

}  // namespace kvl::http
