// Boost.Beast, driven by an io_context that runs for one call.
#include "kvcache/bootstrap/http_call.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <chrono>
#include <ctime>
#include <type_traits>
#include <utility>

#include "kvl/http_token.h"

namespace kvl::bootstrap {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using ErrorCode = boost::system::error_code;

constexpr std::size_t kHostBytesMax = 253;
constexpr std::uint64_t kAnswerBytesMax = 256ull << 20;

using Plain = beast::tcp_stream;
using Secure = beast::ssl_stream<beast::tcp_stream>;

// Resolve, connect, shake hands, write, read: each step starts the next; the deadline of the stream
// covers all.
template <typename Stream>
class Call {
 public:
  Call(asio::io_context& io, Stream stream, const HttpTarget& target,
       http::request<http::string_body> request, std::chrono::milliseconds timeout)
      : resolver_(io), stream_(std::move(stream)), request_(std::move(request)), timeout_(timeout) {
    parser_.body_limit(kAnswerBytesMax);
    resolver_.async_resolve(target.host, target.port, [this](ErrorCode error, auto found) {
      if (error) return end(Code::unavailable, "resolve the rendezvous' name", error);
      connect(found);
    });
  }

  Status status = {Code::timed_out, "call the rendezvous"};
  http::response_parser<http::string_body> parser_;

 private:
  void connect(const asio::ip::tcp::resolver::results_type& endpoints) {
    beast::get_lowest_layer(stream_).expires_after(timeout_);
    beast::get_lowest_layer(stream_).async_connect(endpoints, [this](ErrorCode error, const auto&) {
      if (error) return end(Code::unavailable, "connect to the rendezvous", error);
      shake_hands();
    });
  }
  void shake_hands() {
    if constexpr (std::is_same_v<Stream, Secure>) {
      stream_.async_handshake(asio::ssl::stream_base::client, [this](ErrorCode error) {
        if (!error) return write();
        const bool system = error.category() == boost::system::system_category();
        end(system ? Code::unavailable : Code::permission,
            "TLS with the rendezvous: see its certificate and the authority that is trusted here",
            error);
      });
    } else {
      write();
    }
  }
  void write() {
    http::async_write(stream_, request_, [this](ErrorCode error, std::size_t) {
      if (error) return end(Code::unavailable, "send to the rendezvous", error);
      read();
    });
  }
  void read() {
    http::async_read(stream_, buffer_, parser_, [this](ErrorCode error, std::size_t) {
      if (error == beast::error::timeout || !error) return end(Code::timed_out, "", error);
      const bool broken = error == http::error::end_of_stream ||
                          error == asio::ssl::error::stream_truncated ||
                          error.category() == asio::error::get_ssl_category() ||
                          error.category() == boost::system::system_category();
      end(broken ? Code::unavailable : Code::corrupt, "read the rendezvous' answer", error);
    });
  }
  void end(Code code, const char* context, ErrorCode error) {
    if (!error) {
      status = {};
    } else if (error == beast::error::timeout) {
      status = {Code::timed_out, "call the rendezvous"};
    } else {
      const bool system = error.category() == boost::system::system_category();
      status = {code, context, system ? error.value() : 0};
    }
    ErrorCode ignored;
    beast::get_lowest_layer(stream_).socket().close(ignored);
  }

  asio::ip::tcp::resolver resolver_;
  Stream stream_;
  beast::flat_buffer buffer_;
  http::request<http::string_body> request_;
  std::chrono::milliseconds timeout_;
};

template <typename Stream>
Result<HttpAnswer> run(asio::io_context& io, Stream stream, const HttpTarget& target,
                       http::request<http::string_body> request,
                       std::chrono::milliseconds timeout) {
  Call<Stream> call(io, std::move(stream), target, std::move(request), timeout);
  // The stream's own deadline ends a call that is under way; this one also covers the resolver.
  io.run_for(timeout);
  if (!call.status.ok()) return call.status;
  return HttpAnswer{static_cast<int>(call.parser_.get().result_int()),
                    std::move(call.parser_.get().body())};
}

Result<HttpAnswer> run_plain(const HttpTarget& target, http::request<http::string_body> request,
                             std::chrono::milliseconds timeout) {
  asio::io_context io(1);
  return run(io, Plain(io), target, std::move(request), timeout);
}

Result<HttpAnswer> run_tls(const HttpTarget& target, TlsContext& tls,
                           http::request<http::string_body> request,
                           std::chrono::milliseconds timeout) {
  asio::io_context io(1);
  asio::ssl::context context(tls.acquire());  // takes the reference
  Secure stream(io, context);
  TlsContext::expect_host(stream.native_handle(), target.host);
  return run(io, std::move(stream), target, std::move(request), timeout);
}

}  // namespace

Result<HttpTarget> parse_target(std::string_view url) {
  const Status wrong{Code::invalid_argument,
                     "the rendezvous' URL must be http://HOST:PORT or https://HOST:PORT"};
  constexpr std::string_view kScheme = "http://", kTlsScheme = "https://";
  const bool tls = url.starts_with(kTlsScheme);
  if (!tls && !url.starts_with(kScheme)) return wrong;
  url.remove_prefix(tls ? kTlsScheme.size() : kScheme.size());
  if (url.ends_with('/')) url.remove_suffix(1);
  const std::size_t colon = url.rfind(':');
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == url.size()) return wrong;
  HttpTarget target{std::string(url.substr(0, colon)), std::string(url.substr(colon + 1)), tls};
  if (target.host.front() == '[' && target.host.back() == ']') {
    target.host = target.host.substr(1, target.host.size() - 2);
  }
  // The host becomes a line of the request: nothing but what names and addresses are made of.
  constexpr std::string_view kHostBytes =
      "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-_:%";
  if (target.port.find_first_not_of("0123456789") != std::string::npos || target.port.size() > 5 ||
      target.host.empty() || target.host.size() > kHostBytesMax ||
      target.host.find_first_not_of(kHostBytes) != std::string::npos) {
    return wrong;
  }
  return target;
}

Result<HttpAnswer> http_call(const HttpTarget& target, const HttpAccess& access,
                             std::string_view method, std::string_view path, std::string_view body,
                             std::uint32_t timeout_ms) {
  http::request<http::string_body> request;
  request.version(11);
  request.method_string({method.data(), method.size()});
  request.target({path.data(), path.size()});
  request.set(http::field::host, target.host + ":" + target.port);
  request.set(http::field::connection, "close");
  if (!access.token.empty()) {
    request.set(http::field::authorization,
                http_signature(access.token, {.method = method, .target = path, .body = body},
                               std::time(nullptr)));
  }
  if (!body.empty()) request.set(http::field::content_type, "application/json");
  request.body() = body;
  request.prepare_payload();
  const std::chrono::milliseconds timeout(timeout_ms);
  try {
    return target.tls ? run_tls(target, *access.tls, std::move(request), timeout)
                      : run_plain(target, std::move(request), timeout);
  } catch (const boost::system::system_error& problem) {
    // An io_context takes descriptors, and a thread for the resolver, and throws without them.
    return Status{Code::exhausted, "call the rendezvous", problem.code().value()};
  }
}

}  // namespace kvl::bootstrap
