// The life of a client connection: head, body, answer, next head. While an answer is in work one
// read stays posted: it notices a client that leaves and receives the next request.
#include "router/http/session.h"

#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <cassert>
#include <cstring>
#include <new>
#include <utility>

#include "kvl/log.h"
#include "router/http/message.h"

namespace kvl::http {
namespace {

constexpr std::size_t kBufferBytes = 16 << 10;  // untouched pages of it cost nothing
constexpr std::size_t kLingerBytesMax = 4 << 20;
constexpr double kLingerSecs = 2;
constexpr double kBodyBytesPerSecMin = 64 << 10;  // a body that comes slower than this is cut

}  // namespace

void Session::Buffer::reserve(std::size_t bytes) {
  if (bytes <= capacity) return;
  std::unique_ptr<char[]> grown(new (std::nothrow) char[bytes]);
  if (grown == nullptr) return;
  if (size > 0) std::memcpy(grown.get(), data.get(), size);
  data = std::move(grown);
  capacity = bytes;
}

Session::Session(SessionContext& context, Socket socket, const asio::ip::address& address)
    : context_(context), stream_(std::move(socket)), address_(address) {
  ++context_.open;
  if (context_.limits.per_address_max > 0) ++context_.by_address[address_];
  context_.counters.connections_total.add();
}

Session::~Session() {
  --context_.open;
  context_.buffered -= buffered_;
  if (context_.limits.per_address_max == 0) return;
  const auto of = context_.by_address.find(address_);
  if (--of->second == 0) context_.by_address.erase(of);
}

// Bytes of a large body count when they arrive: a length that is only claimed holds nobody up.
bool Session::buffer(std::uint64_t bytes) {
  if (context_.buffered + bytes > context_.limits.buffered_bytes_max) return false;
  buffered_ += bytes;
  context_.buffered += bytes;
  return true;
}

// Not while a read may be under way into it: a refused body stays until the connection ends.
void Session::release_body() {
  large_ = {};
  context_.buffered -= std::exchange(buffered_, 0);
}

void Session::start() {
  ErrorCode ignored;
  stream_.socket().set_option(asio::ip::tcp::no_delay(true), ignored);
  if (context_.tls != nullptr) stream_.secure(context_.tls->new_server());
  context_.loop.watch(*this);
  set_deadline(after_seconds(context_.limits.header_timeout_secs));
  in().reserve(kBufferBytes);
  read();
}

void Session::stop() {
  if (state_ == State::head && in().size == 0) close();
}

void Session::close() {
  if (state_ == State::closed) return;
  state_ = State::closed;
  clear_deadline();
  count_insecure();
  stream_.close();
}

// Whatever ended it: a client that speaks no TLS, shows no certificate, or stopped half-way.
void Session::count_insecure() {
  const TlsChannel* const tls = stream_.tls();
  if (tls == nullptr || tls->established()) return;
  context_.counters.tls_failed_total.add();
  log(LogLevel::info, "http.tls_failed",
      {{"side", "server"},
       {"client", address_.to_string()},
       {"code", to_string(Code::permission)},
       {"why", tls->problem().empty() ? "it took too long" : tls->problem()},
       {"hint", "the client speaks no TLS, or shows no certificate that is trusted here"}});
}

// Reads into the buffer that the state calls for.
void Session::read() {
  if (reading_ || state_ == State::closed) return;
  char* at = nullptr;
  std::size_t room = 0;
  if (state_ == State::body && large_.capacity > 0 && !head_.headers.chunked) {
    at = large_.data.get() + large_.size;
    room = *head_.headers.content_length - large_.size;
  } else {
    Buffer& buffer = state_ == State::answering ? ahead() : in();
    if (state_ == State::lingering) buffer.size = 0;
    at = buffer.data.get() + buffer.size;
    room = buffer.capacity - buffer.size;
  }
  assert(room > 0);
  reading_ = true;
  stream_.async_read_some(at, room,
                          [self = shared_from_this()](ErrorCode error, std::size_t bytes) {
                            self->reading_ = false;
                            self->on_read(error, bytes);
                          });
}

void Session::on_read(ErrorCode error, std::size_t bytes) {
  context_.counters.bytes_in_total.add(bytes);
  switch (state_) {
    case State::closed:
      return;
    case State::answering:
      ahead().size += bytes;
      on_lookahead(error);
      return;
    case State::lingering:
      lingered_ += bytes;
      if (error || lingered_ > kLingerBytesMax) return close();
      return read();
    case State::head:
      if (error) return close();
      if (in().size == 0) set_deadline(after_seconds(context_.limits.header_timeout_secs));
      in().size += bytes;
      return parse_head();
    case State::body:
      if (error) return close();
      if (large_.capacity > 0 && !head_.headers.chunked) {
        if (!buffer(bytes)) return refuse(503, "too many large requests at once");
        large_.size += bytes;
      } else {
        in().size += bytes;
      }
      return continue_body();
  }
}

// Bytes during an answer are the next request: kept, and no more read. An error is a client that
// left.
void Session::on_lookahead(ErrorCode error) {
  if (error) client_gone();
}

void Session::client_gone() {
  SessionUser* const user = std::exchange(user_, nullptr);
  close();
  if (user != nullptr) user->on_client_gone();
}

void Session::parse_head() {
  if (state_ != State::head) return;
  switch (parse_request_head(in().view(), scanned_, head_)) {
    case Parse::complete:
      return start_body();
    case Parse::incomplete:
      if (in().size == in().capacity) in().reserve(kHeadBytesMax + kBufferBytes);
      if (in().size == in().capacity) return close();
      return read();
    case Parse::bad:
      return refuse(400, "not a valid HTTP/1.1 request");
    case Parse::too_large:
      return refuse(431, "request head too large");
    case Parse::unsupported:
      return refuse(501, "HTTP version or transfer coding not supported");
  }
}

void Session::start_body() {
  context_.counters.requests_total.add();
  body_start_ = LoopClock::now();
  if (!context_.rate.admit(address_, body_start_)) {
    return refuse(429, "too many requests from this address");
  }
  state_ = State::body;
  const std::uint64_t length = head_.headers.content_length.value_or(0);
  if (length > context_.limits.body_bytes_max) return refuse(413, "request body too large");
  const bool waits = in().size < head_.bytes + length || head_.headers.chunked;
  if (waits) limit_body_time(length);
  if (head_.headers.chunked) {
    body_reader_ = BodyReader::chunked();
    chunk_read_ = head_.bytes;
    if (in().capacity - head_.bytes < kBufferBytes / 4) {
      in().reserve(in().capacity + kBufferBytes);
      if (in().capacity - head_.bytes < kBufferBytes / 4) return close();
      scanned_ = 0;  // the head has moved: its views must follow
      (void)parse_request_head(in().view(), scanned_, head_);
    }
  } else if (length > in().capacity - head_.bytes) {
    large_.reserve(length);
    if (large_.capacity < length) return refuse(503, "no memory for the request body");
    large_.size = in().size - head_.bytes;
    std::memcpy(large_.data.get(), in().data.get() + head_.bytes, large_.size);
    in().size = head_.bytes;
  }
  if (waits && head_.expect_continue) {
    constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    Parts parts;
    parts.add(kContinue);
    if (output_.send(stream_, parts) != Output::Outcome::done) return close();
  }
  continue_body();
}

// A time for the body to start, and for each byte of it.
void Session::limit_body_time(std::uint64_t bytes) {
  const double secs =
      context_.limits.header_timeout_secs + static_cast<double>(bytes) / kBodyBytesPerSecMin;
  set_deadline(body_start_ + std::chrono::duration_cast<LoopClock::duration>(
                                 std::chrono::duration<double>(secs)));
}

void Session::continue_body() {
  if (head_.headers.chunked) return continue_chunked();
  const std::size_t length = head_.headers.content_length.value_or(0);
  if (large_.capacity > 0) {
    if (large_.size < length) return read();
    body_ = large_.view();
    return dispatch(in().size);
  }
  if (in().size < head_.bytes + length) return read();
  body_ = in().view().substr(head_.bytes, length);
  dispatch(head_.bytes + length);
}

// The payload of chunks is gathered in large_, the only case in which a body is copied.
void Session::continue_chunked() {
  while (!body_reader_.done()) {
    Pieces pieces;
    chunk_read_ += body_reader_.take(in().view().substr(chunk_read_), pieces);
    if (body_reader_.bad()) return refuse(400, "bad chunked coding");
    if (large_.size + pieces.bytes > context_.limits.body_bytes_max) {
      return refuse(413, "request body too large");
    }
    if (!buffer(pieces.bytes)) return refuse(503, "too many large requests at once");
    if (large_.size + pieces.bytes > large_.capacity) {
      large_.reserve(2 * (large_.size + pieces.bytes) + kBufferBytes);
    }
    if (large_.size + pieces.bytes > large_.capacity) {
      return refuse(503, "no memory for the request body");
    }
    for (std::size_t i = 0; i < pieces.count; ++i) {
      std::memcpy(large_.data.get() + large_.size, pieces.list[i].data(), pieces.list[i].size());
      large_.size += pieces.list[i].size();
    }
    if (chunk_read_ < in().size) continue;
    if (body_reader_.done()) break;
    limit_body_time(large_.size);
    in().size = chunk_read_ = head_.bytes;
    return read();
  }
  body_ = large_.view();
  dispatch(chunk_read_);
}

// The request is complete: what follows it moves to the other buffer, and one read is posted there.
void Session::dispatch(std::size_t consumed) {
  const std::string_view rest = in().view().substr(consumed);
  ahead().reserve(std::max(kBufferBytes, rest.size()));
  if (ahead().capacity < std::max(kBufferBytes, rest.size())) return close();
  std::memcpy(ahead().data.get(), rest.data(), rest.size());
  ahead().size = rest.size();
  state_ = State::answering;
  reusable_ = keep_alive();
  clear_deadline();
  const auto self = shared_from_this();
  if (rest.empty()) read();
  context_.handler.handle(*this);
}

void Session::reply(const Reply& reply) {
  const bool head_only = head_.method == "HEAD";
  reusable_ = reusable_ && keep_alive();
  reply_ = status_line(reply.status);
  if (!reply.content_type.empty()) {
    reply_.append("Content-Type: ").append(reply.content_type).append("\r\n");
  }
  reply_.append("Content-Length: ").append(std::to_string(reply.body.size())).append("\r\n");
  reply_.append(reply.headers);
  reply_.append(reusable_ ? "\r\n" : "Connection: close\r\n\r\n");
  if (!head_only) reply_.append(reply.body);
  detach();
  replying_ = true;
  set_deadline(after_seconds(context_.limits.idle_timeout_secs));
  Parts parts;
  parts.add(reply_);
  switch (write(parts)) {
    case Output::Outcome::done:
      return answer_done();
    case Output::Outcome::pending:
      return;
    case Output::Outcome::failed:
      return close();
  }
}

Output::Outcome Session::write(Parts& parts) {
  if (state_ == State::closed) return Output::Outcome::failed;
  for (const iovec& part : parts.all()) context_.counters.bytes_out_total.add(part.iov_len);
  const Output::Outcome outcome = output_.send(stream_, parts);
  if (outcome == Output::Outcome::pending) wait_writable();
  return outcome;
}

void Session::wait_writable() {
  stream_.async_wait(output_.waits_for(), [self = shared_from_this()](ErrorCode error) {
    if (self->state_ == State::closed) return;
    const Output::Outcome outcome =
        error ? Output::Outcome::failed : self->output_.resume(self->stream_);
    if (outcome == Output::Outcome::pending) return self->wait_writable();
    if (outcome == Output::Outcome::failed) return self->client_gone();
    if (self->replying_) return self->answer_done();
    if (self->user_ != nullptr) self->user_->on_written();
  });
}

void Session::end(bool reusable) {
  detach();
  reusable_ = reusable_ && reusable && keep_alive();
  answer_done();
}

void Session::answer_done() {
  if (state_ == State::closed) return;
  replying_ = false;
  if (!reusable_) return linger();
  next_request();
}

void Session::next_request() {
  state_ = State::head;
  body_ = {};
  scanned_ = 0;
  in().size = 0;
  release_body();
  current_ = 1 - current_;
  set_deadline(after_seconds(context_.limits.idle_timeout_secs));
  if (context_.stopping && in().size == 0) return close();
  if (in().size == 0) return read();
  // Posted, not called: requests that came in one packet must not nest.
  set_deadline(after_seconds(context_.limits.header_timeout_secs));
  asio::post(stream_.socket().get_executor(), [self = shared_from_this()] { self->parse_head(); });
}

void Session::turn_away(const Reply& refusal) {
  context_.counters.refused.add(refusal_of(refusal.status), address_.to_string());
  reply(refusal);
}

void Session::refuse(int status, const char* why) {
  context_.counters.refused.add(refusal_of(status), address_.to_string(), why);
  state_ = State::answering;
  ahead().reserve(kBufferBytes);
  if (ahead().capacity == 0) return close();
  ahead().size = 0;
  head_.method = {};
  reusable_ = false;
  reply({.status = status, .body = error_body(status, "invalid_request_error", why)});
}

// The client may still be sending: closing now would reset the connection and take the answer with
// it. So only our direction is closed, and what comes is thrown away for a short time.
void Session::linger() {
  ErrorCode ignored;
  stream_.end_sending(ignored);
  if (ignored) return close();
  state_ = State::lingering;
  set_deadline(after_seconds(kLingerSecs));
  in().reserve(kBufferBytes);
  read();
}

void Session::on_deadline() {
  switch (state_) {
    case State::head:
      context_.counters.timeouts_total.add();
      return in().size == 0 ? close() : refuse(408, "the request head did not arrive in time");
    case State::body:
      context_.counters.timeouts_total.add();
      return refuse(408, "the request body did not arrive in time");
    case State::answering:
    case State::lingering:
      context_.counters.timeouts_total.add();
      return close();
    case State::closed:
      return;
  }
}

}  // namespace kvl::http
