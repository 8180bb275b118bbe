// Status texts and JSON for answers that the router gives itself.
#include "router/http/message.h"

namespace kvl::http {

std::string_view reason_phrase(int status) {
  switch (status) {
    case 100:
      return "Continue";
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Status";
  }
}

std::string status_line(int status) {
  std::string line = "HTTP/1.1 " + std::to_string(status) + " ";
  return line.append(reason_phrase(status)).append("\r\n");
}

std::string json_quote(std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (u < 0x20) {
      out.append("\\u00").append({kHex[u >> 4], kHex[u & 15]});
    } else {
      out += c;
    }
  }
  return out += '"';
}

std::string error_body(int status, std::string_view type, std::string_view message) {
  const std::string fields = "\"message\":" + json_quote(message) +
                             ",\"type\":" + json_quote(type) +
                             ",\"param\":null,\"code\":" + std::to_string(status);
  return "{\"error\":{" + fields + "},\"object\":\"error\"," + fields + "}";
}

}  // namespace kvl::http
