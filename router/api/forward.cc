// Copies heads, header by header.
#include "router/api/forward.h"

#include <algorithm>
#include <array>

#include "router/http/message.h"

namespace kvl::router {
namespace {

using http::equals_no_case;
using http::Header;
using http::Headers;

constexpr std::array<std::string_view, 11> kHopByHop = {"connection",
                                                        "keep-alive",
                                                        "proxy-connection",
                                                        "proxy-authenticate",
                                                        "proxy-authorization",
                                                        "te",
                                                        "trailer",
                                                        "transfer-encoding",
                                                        "upgrade",
                                                        "content-length",
                                                        "expect"};

bool starts_with_no_case(std::string_view text, std::string_view start) {
  return text.size() >= start.size() && equals_no_case(text.substr(0, start.size()), start);
}

// Names listed in Connection are hop-by-hop as well.
bool listed_in_connection(const Headers& headers, std::string_view name) {
  std::string_view list = headers.find("connection");
  while (!list.empty()) {
    std::string_view item = list.substr(0, list.find(','));
    list.remove_prefix(std::min(list.size(), item.size() + 1));
    while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
    while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
    if (equals_no_case(item, name)) return true;
  }
  return false;
}

void copy_headers(const Headers& headers, bool with_host, std::string& out) {
  const bool lists = headers.find("connection").find(',') != std::string_view::npos ||
                     (!headers.find("connection").empty() &&
                      !equals_no_case(headers.find("connection"), "keep-alive") &&
                      !equals_no_case(headers.find("connection"), "close"));
  for (const Header& header : headers.all()) {
    const bool hop = std::any_of(kHopByHop.begin(), kHopByHop.end(), [&](std::string_view name) {
      return equals_no_case(header.name, name);
    });
    if (hop || (!with_host && equals_no_case(header.name, "host"))) continue;
    if (lists && listed_in_connection(headers, header.name)) continue;
    out.append(header.name).append(": ").append(header.value).append("\r\n");
  }
}

}  // namespace

std::string forward_request_line(const http::RequestHead& head) {
  std::string line;
  line.reserve(head.method.size() + head.target.size() + 12);
  return line.append(head.method).append(" ").append(head.target).append(" HTTP/1.1\r\n");
}

std::string forward_request_headers(const http::RequestHead& head) {
  std::string out;
  out.reserve(head.bytes);
  copy_headers(head.headers, false, out);
  return out;
}

std::string_view session_header(const http::RequestHead& head) {
  for (const Header& header : head.headers.all()) {
    for (const std::string_view name :
         {"x-override-bootstrap-", "x-override-routed-dp-rank", "x-override-disagg-prefill-dp-rank",
          "x-data-parallel-rank"}) {
      if (starts_with_no_case(header.name, name)) return header.name;
    }
  }
  return {};
}

std::string forward_response_head(const http::ResponseHead& head) {
  std::string out;
  out.reserve(head.bytes + 64);
  out.append("HTTP/1.1 ").append(std::to_string(head.status)).append(" ");
  out.append(head.reason.empty() ? http::reason_phrase(head.status) : head.reason);
  out.append("\r\n");
  copy_headers(head.headers, true, out);
  return out;
}

void for_each_rid(std::string_view rid, const std::function<void(std::string_view)>& each) {
  // The value comes out of a JSON check, so quotes are paired and escapes are whole.
  if (rid.empty() || (rid.front() != '"' && rid.front() != '[')) return;
  std::size_t at = 0;
  while ((at = rid.find('"', at)) != std::string_view::npos) {
    std::size_t end = at + 1;
    while (rid[end] != '"') end += rid[end] == '\\' ? 2 : 1;
    each(rid.substr(at, end + 1 - at));
    at = end + 1;
  }
}

}  // namespace kvl::router
