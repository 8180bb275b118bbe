// A small HTTP/1.1 server on one thread: whole requests in, whole or streamed answers out. Knows
// nothing of models.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/config.h"
#include "kvl/status.h"

namespace kvl::worker {

struct HttpRequest {
  std::string method, path;  // path without query
  std::string body;
};

// Where the answer to one request goes. All calls from any thread; after the client has left, or
// after the end, they do nothing.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  // The whole answer. `headers`: more of them, each with its end of line.
  virtual void send(int status, std::string content_type, std::string body,
                    std::string headers = {}) = 0;
  // A chunked answer: begin, write…, end.
  virtual void begin(int status, std::string content_type) = 0;
  virtual void write(std::string data) = 0;
  virtual void end() = 0;
  // Called once, by the server's thread, if the client leaves before the end. At most one.
  virtual void on_gone(std::function<void()> gone) = 0;
};

// The fields with a row in http_server_settings() are settings named "worker.<field>".
struct HttpServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;  // 0: any free one
  std::uint64_t body_bytes_max = 64 << 20;
  std::uint64_t buffered_bytes_max = 1 << 30;  // claimed by large bodies under way; beyond: 503
  std::uint32_t connections_max = 4096;        // beyond: the oldest without a request is closed
  std::uint32_t request_timeout_s = 30;  // from a connection's or an answer's end to the body's
  std::uint32_t idle_timeout_s = 75;     // between requests; for a client to take an answer
  std::uint64_t unsent_bytes_max = 16 << 20;  // of a stream that the client does not read: closed
};

std::vector<Setting> http_server_settings();

// What was not HTTP, or beyond a limit.
enum class HttpRefusal : std::uint8_t { crowded, overloaded, too_large, bad_request };
inline constexpr std::size_t kHttpRefusals = 4;
std::string_view to_string(HttpRefusal refusal);

class HttpServer {
 public:
  // Called by the server's thread; must not block. Must use the reply, now or later.
  using Handler = std::function<void(HttpRequest, std::shared_ptr<HttpReply>)>;

  // invalid_argument: host. unavailable: port in use; `error` receives a sentence.
  static Result<std::unique_ptr<HttpServer>> open(const HttpServerOptions& options, Handler handler,
                                                  std::string* error);
  virtual ~HttpServer() = default;  // closes every connection, joins
  virtual std::uint16_t port() const = 0;
  virtual std::uint64_t refused(HttpRefusal refusal) const = 0;
};

}  // namespace kvl::worker
