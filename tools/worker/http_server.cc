// The server on Boost.Beast. One thread runs the loop; a session is one connection.
#include "worker/http_server.h"

#include <sys/socket.h>

#include <array>
#include <atomic>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <deque>
#include <list>
#include <optional>
#include <thread>
#include <utility>

#include "kvl/log.h"

namespace kvl::worker {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;
using tcp = asio::ip::tcp;

constexpr std::uint64_t kSmallBodyBytes = 64 << 10;    // does not count as buffered
constexpr std::uint64_t kBodyBytesPerSMin = 64 << 10;  // a body that comes slower is cut
constexpr std::chrono::milliseconds kAcceptPause{100};

class Session;

struct RefusalInfo {
  HttpRefusal refusal;
  Code code;
  std::string_view cause, hint;
  bool ours;  // a limit of this server was reached, and its operator may raise it
};
constexpr std::array<RefusalInfo, kHttpRefusals> kRefusalTable{{
    {HttpRefusal::crowded, Code::exhausted, "crowded",
     "too many connections at once: see who opens them, or raise worker.connections_max", true},
    {HttpRefusal::overloaded, Code::exhausted, "overloaded",
     "large requests fill worker.buffered_bytes_max: raise it, or send fewer at once", true},
    {HttpRefusal::too_large, Code::exhausted, "too_large",
     "the client sends more than worker.body_bytes_max or 64 KiB of head", false},
    {HttpRefusal::bad_request, Code::invalid_argument, "bad_request",
     "the client does not speak HTTP/1.1: look at it", false},
}};

struct Shared {
  HttpServerOptions options;
  HttpServer::Handler handler;
  std::array<std::atomic<std::uint64_t>, kHttpRefusals> refused{};

  void refuse(HttpRefusal refusal) {
    const RefusalInfo& info = kRefusalTable[static_cast<std::size_t>(refusal)];
    ++refused[static_cast<std::size_t>(refusal)];
    log(info.ours ? LogLevel::warning : LogLevel::info, "worker.http_refused",
        {{"code", kvl::to_string(info.code)}, {"cause", info.cause}, {"hint", info.hint}});
  }
  // The loop's thread only.
  std::uint32_t connections = 0;
  std::uint64_t buffered = 0;   // claimed by large bodies
  std::list<Session*> waiting;  // for a request's head, oldest first
};

std::string chunk(const std::string& data) {
  char size[20];
  std::snprintf(size, sizeof(size), "%zx\r\n", data.size());
  return size + data + "\r\n";
}

std::string head(int status, const std::string& content_type, bool keep_alive) {
  const auto reason =
      status == 499 ? beast::string_view("Client Closed Request")
                    : http::obsolete_reason(http::int_to_status(static_cast<unsigned>(status)));
  return "HTTP/1.1 " + std::to_string(status) + " " + std::string(reason) +
         "\r\nServer: kvlane\r\nContent-Type: " + content_type +
         (keep_alive ? "\r\n" : "\r\nConnection: close\r\n");
}

class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, Shared& shared) : stream_(std::move(socket)), shared_(shared) {
    ++shared_.connections;
  }
  ~Session() {
    --shared_.connections;
    stop_waiting();
    release_body();
  }

  void read();
  // Makes room for another connection: nobody loses an answer while a head is awaited.
  void give_way() {
    stop_waiting();
    leave();
  }
  // Of the reply to request number `request`; on the loop's thread.
  void put(std::uint64_t request, std::string bytes, bool last);
  void set_gone(std::uint64_t request, std::function<void()> gone);
  asio::any_io_executor executor() { return stream_.get_executor(); }
  bool keep_alive() const { return keep_alive_; }

 private:
  void on_head();
  bool claim_body();
  void release_body() { shared_.buffered -= std::exchange(claimed_, 0); }
  void stop_waiting() {
    if (std::exchange(waits_, false)) shared_.waiting.erase(place_);
  }
  void read_body();
  void on_read(error_code code);
  void refuse(http::status status);
  void watch();
  void write_next();
  void on_written(error_code code);
  void leave();

  beast::tcp_stream stream_;
  Shared& shared_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::uint64_t request_ = 0;  // counts; replies to an earlier one are ignored
  bool answering_ = false;
  bool keep_alive_ = true;
  bool last_queued_ = false;
  bool writing_ = false;
  std::deque<std::string> unsent_;
  std::uint64_t unsent_bytes_ = 0;
  std::function<void()> gone_;
  std::uint64_t claimed_ = 0;  // of shared_.buffered
  bool waits_ = false;
  std::list<Session*>::iterator place_;  // in shared_.waiting, while waits_
};

class Reply final : public HttpReply {
 public:
  Reply(std::shared_ptr<Session> session, std::uint64_t request)
      : session_(std::move(session)), request_(request) {}

  void send(int status, std::string content_type, std::string body, std::string headers) override {
    post([status, content_type = std::move(content_type), body = std::move(body),
          headers = std::move(headers)](Session& session, std::uint64_t request) {
      std::string bytes = head(status, content_type, session.keep_alive()) + headers;
      bytes += "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
      session.put(request, std::move(bytes), true);
    });
  }
  void begin(int status, std::string content_type) override {
    post([status, content_type = std::move(content_type)](Session& session, std::uint64_t request) {
      session.put(request,
                  head(status, content_type, session.keep_alive()) +
                      "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n",
                  false);
    });
  }
  void write(std::string data) override {
    if (data.empty()) return;  // an empty chunk would be the end
    post([data = std::move(data)](Session& session, std::uint64_t request) {
      session.put(request, chunk(data), false);
    });
  }
  void end() override {
    post([](Session& session, std::uint64_t request) { session.put(request, "0\r\n\r\n", true); });
  }
  void on_gone(std::function<void()> gone) override {
    post([gone = std::move(gone)](Session& session, std::uint64_t request) {
      session.set_gone(request, gone);
    });
  }

 private:
  template <typename Work>
  void post(Work work) {
    asio::post(session_->executor(), [session = session_, request = request_,
                                      work = std::move(work)] { work(*session, request); });
  }
  std::shared_ptr<Session> session_;
  std::uint64_t request_;
};

void Session::read() {
  parser_.emplace();
  parser_->body_limit(shared_.options.body_bytes_max);
  parser_->header_limit(64 << 10);
  stream_.expires_after(std::chrono::seconds(shared_.options.idle_timeout_s));
  place_ = shared_.waiting.insert(shared_.waiting.end(), this);
  waits_ = true;
  http::async_read_header(stream_, buffer_, *parser_,
                          [self = shared_from_this()](error_code code, std::size_t) {
                            self->stop_waiting();
                            if (code) return self->on_read(code);
                            self->on_head();
                          });
}

// A large body takes its share before a byte of it is read; one without a length, all it may have.
bool Session::claim_body() {
  const auto length = parser_->content_length();
  std::uint64_t bytes = parser_->chunked() ? shared_.options.body_bytes_max : 0;
  if (length) bytes = *length;
  if (bytes <= kSmallBodyBytes) bytes = 0;
  if (shared_.buffered + bytes > shared_.options.buffered_bytes_max) return false;
  shared_.buffered += bytes;
  claimed_ = bytes;
  stream_.expires_after(
      std::chrono::seconds(shared_.options.request_timeout_s + bytes / kBodyBytesPerSMin));
  return true;
}

// curl asks before it sends a long body.
void Session::on_head() {
  if (!claim_body()) return refuse(http::status::service_unavailable);
  if (!beast::iequals(parser_->get()[http::field::expect], "100-continue")) return read_body();
  static constexpr std::string_view kGoOn = "HTTP/1.1 100 Continue\r\n\r\n";
  asio::async_write(stream_, asio::buffer(kGoOn),
                    [self = shared_from_this()](error_code code, std::size_t) {
                      if (code) return self->leave();
                      self->read_body();
                    });
}

void Session::read_body() {
  http::async_read(
      stream_, buffer_, *parser_,
      [self = shared_from_this()](error_code code, std::size_t) { self->on_read(code); });
}

void Session::on_read(error_code code) {
  if (code == http::error::body_limit) return refuse(http::status::payload_too_large);
  if (code == http::error::header_limit) {
    return refuse(http::status::request_header_fields_too_large);
  }
  // Only the parser's own complaints are worth an answer; the rest is a connection that ended.
  const bool parsed = code.category() == http::make_error_code(http::error::bad_method).category();
  if (code == http::error::end_of_stream || code == http::error::partial_message ||
      (code && !parsed)) {
    return leave();
  }
  if (code) return refuse(http::status::bad_request);
  stream_.expires_never();
  http::request<http::string_body> message = parser_->release();
  release_body();
  keep_alive_ = message.keep_alive();
  answering_ = true;
  last_queued_ = false;
  ++request_;
  const std::string_view target(message.target().data(), message.target().size());
  HttpRequest request{std::string(message.method_string()),
                      std::string(target.substr(0, target.find('?'))), std::move(message.body())};
  watch();
  shared_.handler(std::move(request), std::make_shared<Reply>(shared_from_this(), request_));
}

void Session::refuse(http::status status) {
  shared_.refuse(status == http::status::service_unavailable ? HttpRefusal::overloaded
                 : status == http::status::bad_request       ? HttpRefusal::bad_request
                                                             : HttpRefusal::too_large);
  answering_ = true;
  keep_alive_ = false;
  const int number = static_cast<int>(status);
  put(request_, head(number, "text/plain", false) + "Content-Length: 0\r\n\r\n", true);
}

// While an answer is being made nothing is read, but a client that hangs up is noticed.
void Session::watch() {
  stream_.socket().async_wait(
      tcp::socket::wait_read, [self = shared_from_this(), request = request_](error_code code) {
        if (code || !self->answering_ || request != self->request_) return;
        char byte = 0;
        const ssize_t got =
            ::recv(self->stream_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        // Bytes: the next request, early. It waits in the socket, and so does news of a hang-up.
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) self->leave();
      });
}

void Session::set_gone(std::uint64_t request, std::function<void()> gone) {
  if (request != request_) return gone();
  if (answering_) gone_ = std::move(gone);
}

void Session::put(std::uint64_t request, std::string bytes, bool last) {
  if (request != request_ || !answering_ || last_queued_) return;
  last_queued_ = last;
  unsent_bytes_ += bytes.size();
  unsent_.push_back(std::move(bytes));
  if (!last && unsent_bytes_ > shared_.options.unsent_bytes_max) return leave();
  if (!writing_) write_next();
}

void Session::write_next() {
  writing_ = true;
  stream_.expires_after(std::chrono::seconds(shared_.options.idle_timeout_s));
  asio::async_write(
      stream_, asio::buffer(unsent_.front()),
      [self = shared_from_this()](error_code code, std::size_t) { self->on_written(code); });
}

void Session::on_written(error_code code) {
  writing_ = false;
  if (code || !answering_) return leave();
  unsent_bytes_ -= unsent_.front().size();
  unsent_.pop_front();
  stream_.expires_never();
  if (!unsent_.empty()) return write_next();
  if (!last_queued_) return;
  answering_ = false;
  gone_ = nullptr;
  if (!keep_alive_) {
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    return;
  }
  error_code ignored;
  stream_.socket().cancel(ignored);  // ends watch()
  read();
}

void Session::leave() {
  answering_ = false;
  ++request_;
  release_body();
  if (gone_) std::exchange(gone_, nullptr)();
  stream_.close();
}

class Server final : public HttpServer {
 public:
  Server(const HttpServerOptions& options, Handler handler) : acceptor_(loop_) {
    shared_.options = options;
    shared_.handler = std::move(handler);
  }
  ~Server() override {
    loop_.stop();
    if (thread_.joinable()) thread_.join();
  }
  std::uint16_t port() const override { return port_; }
  std::uint64_t refused(HttpRefusal refusal) const override {
    return shared_.refused[static_cast<std::size_t>(refusal)];
  }

  Status start(std::string* error) {
    error_code code;
    const auto address = asio::ip::make_address(shared_.options.host, code);
    if (code) {
      if (error != nullptr) *error = "'" + shared_.options.host + "' is not an IP address";
      return {Code::invalid_argument, "HTTP host"};
    }
    const tcp::endpoint endpoint(address, shared_.options.port);
    acceptor_.open(endpoint.protocol(), code);
    if (!code) acceptor_.set_option(asio::socket_base::reuse_address(true), code);
    if (!code) acceptor_.bind(endpoint, code);
    if (!code) acceptor_.listen(512, code);
    if (code) {
      if (error != nullptr) {
        *error = "cannot listen on " + shared_.options.host + ":" +
                 std::to_string(shared_.options.port) + ": " + code.message();
      }
      return {Code::unavailable, "HTTP port", code.value()};
    }
    port_ = acceptor_.local_endpoint().port();
    accept();
    thread_ = std::thread([this] { loop_.run(); });
    return {};
  }

 private:
  void accept() {
    acceptor_.async_accept([this](error_code code, tcp::socket socket) {
      if (code == asio::error::operation_aborted) return;
      // Out of descriptors: the next attempt would fail as well, at once.
      if (code) return pause();
      if (shared_.connections >= shared_.options.connections_max) {
        shared_.refuse(HttpRefusal::crowded);
        // In a flood of silent connections, who sends a request at once gets in.
        if (shared_.waiting.empty()) return accept();  // the socket closes
        shared_.waiting.front()->give_way();
      }
      socket.set_option(tcp::no_delay(true), code);
      std::make_shared<Session>(std::move(socket), shared_)->read();
      accept();
    });
  }
  void pause() {
    again_.expires_after(kAcceptPause);
    again_.async_wait([this](error_code code) {
      if (!code) accept();
    });
  }

  Shared shared_;
  asio::io_context loop_{1};
  tcp::acceptor acceptor_;
  asio::steady_timer again_{loop_};
  std::uint16_t port_ = 0;
  std::thread thread_;
};

}  // namespace

std::string_view to_string(HttpRefusal refusal) {
  return kRefusalTable[static_cast<std::size_t>(refusal)].cause;
}

std::vector<Setting> http_server_settings() {
  using O = HttpServerOptions;
  return {
      setting<&O::body_bytes_max>("worker.body_bytes_max", "bytes", 1024, 1e12,
                                  "largest request body; beyond it the answer is 413"),
      setting<&O::buffered_bytes_max>(
          "worker.buffered_bytes_max", "bytes", 1024, 1e15,
          "large request bodies in memory; beyond it the answer is 503"),
      setting<&O::connections_max>("worker.connections_max", "", 1, 1e6,
                                   "client connections; beyond, silent ones are closed"),
      setting<&O::request_timeout_s>("worker.request_timeout_s", "s", 1, 3600,
                                     "limit for a client to send a request's body"),
      setting<&O::idle_timeout_s>(
          "worker.idle_timeout_s", "s", 1, 86400,
          "limit for the next request's head to arrive, and for a client to take an answer"),
      setting<&O::unsent_bytes_max>("worker.unsent_bytes_max", "bytes", 1024, 1e12,
                                    "of a stream that its client does not read; then it is closed"),
  };
}

Result<std::unique_ptr<HttpServer>> HttpServer::open(const HttpServerOptions& options,
                                                     Handler handler, std::string* error) {
  auto server = std::make_unique<Server>(options, std::move(handler));
  KVL_TRY(server->start(error));
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace kvl::worker
