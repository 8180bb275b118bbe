// A whole connection of the router's HTTP server: pipelined requests come out the same however the
// bytes are cut, and memory for a body is bounded by what was allowed.
#include <sys/socket.h>

#include "router/http/session.h"
#include "tests/fuzz/fuzz.h"
#include "transport/base/unique_fd.h"

namespace kvl::fuzz {
namespace {

constexpr std::uint64_t kBodyBytesMax = 4096;

class Recorder final : public http::RequestHandler {
 public:
  void handle(http::Session& session) override {
    const http::RequestHead& head = session.request();
    require(session.body().size() <= kBodyBytesMax, "bodies are bounded");
    seen.append(head.method).append(" ").append(head.target).append(" ").append(session.body());
    seen += '\n';
    session.reply({.body = "{}"});
  }
  std::string seen;
};

// What the handler saw of the bytes, and what the client was told.
std::pair<std::string, std::string> serve(std::string_view data, std::size_t step) {
  int fds[2];
  require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0,
          "a socket pair");
  const UniqueFd client(fds[0]);
  Recorder recorder;
  http::Loop loop(0);
  http::SessionContext context{.loop = loop,
                               .handler = recorder,
                               .limits = {.body_bytes_max = kBodyBytesMax},
                               .counters = {}};
  std::string heard;
  {
    http::Socket socket(loop.io());
    socket.assign(http::asio::ip::tcp::v4(), fds[1]);
    const auto session = std::make_shared<http::Session>(context, std::move(socket));
    session->start();
    const auto settle = [&] {
      loop.io().restart();
      while (loop.io().poll() > 0) continue;
      char buffer[4096];
      for (ssize_t n = 0; (n = ::recv(client.get(), buffer, sizeof(buffer), 0)) > 0;) {
        heard.append(buffer, static_cast<std::size_t>(n));
      }
    };
    while (!data.empty()) {
      const std::string_view part = data.substr(0, step);
      const ssize_t n = ::send(client.get(), part.data(), part.size(), MSG_NOSIGNAL);
      settle();
      if (n < 0) break;  // refused and closed
      data.remove_prefix(static_cast<std::size_t>(n));
    }
    settle();
    session->close();
    loop.io().restart();
    while (loop.io().poll() > 0) continue;
  }
  require(context.open == 0, "a closed session is gone");
  return {recorder.seen, heard};
}

}  // namespace

void fuzz_http_session(Bytes input) {
  if (input.empty() || input.size() > 20000) return;
  const std::size_t step = std::to_integer<std::size_t>(input[0]) + 1;
  const std::string_view data = text_of(input.subspan(1));
  const auto whole = serve(data, data.size() + 1);
  const auto cut = serve(data, step);
  require(whole.first == cut.first, "requests do not depend on how their bytes came");
  require(whole.second == cut.second, "nor do the answers");
}

Seeds seeds_http_session() {
  return {seed("\x09GET /health HTTP/1.1\r\n\r\nPOST /generate HTTP/1.1\r\nContent-Length: 8\r\n"
               "\r\n{\"a\": 1}GET /x HTTP/1.0\r\n\r\n"),
          seed("\x11POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
               "3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n"),
          seed("\x02POST /a HTTP/1.1\r\nContent-Length: 5000\r\n\r\n"),
          seed("\x40\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS on a plain port")};
}

}  // namespace kvl::fuzz
