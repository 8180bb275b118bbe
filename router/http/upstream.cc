// One call after the other on a kept-alive connection. One read stays posted while it is idle, so
// that a worker that closes it is noticed before the next request is sent into the void.
#include "router/http/upstream.h"

#include <algorithm>
#include <boost/asio/error.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/post.hpp>
#include <cassert>
#include <utility>

#include "kvl/log.h"

namespace kvl::http {
namespace {

constexpr std::size_t kBufferBytes = 64 << 10;  // untouched pages of it cost nothing
static_assert(kBufferBytes >= kHeadBytesMax);

using Resolver = asio::ip::basic_resolver<asio::ip::tcp, Executor>;

}  // namespace

UpstreamPool::UpstreamPool(Loop& loop, Url url, std::shared_ptr<TlsContext> tls)
    : loop_(loop), url_(std::move(url)), tls_(std::move(tls)) {
  assert(!url_.tls || tls_ != nullptr);
}

UpstreamPool::~UpstreamPool() {
  for (Upstream* connection : all_) connection->pool_ = nullptr;
  for (const auto& connection : idle_) connection->close();
}

std::shared_ptr<Upstream> UpstreamPool::take() {
  if (!idle_.empty()) {
    std::shared_ptr<Upstream> connection = std::move(idle_.back());
    idle_.pop_back();
    return connection;
  }
  ++opened_;
  auto connection = std::make_shared<Upstream>(*this, loop_);
  all_.push_back(connection.get());
  return connection;
}

void UpstreamPool::give_back(std::shared_ptr<Upstream> connection) {
  if (idle_.size() >= kIdleMax) return connection->close();
  idle_.push_back(std::move(connection));
}

void UpstreamPool::forget(const Upstream& connection) {
  std::erase(all_, &connection);
  std::erase_if(idle_, [&](const auto& idle) { return idle.get() == &connection; });
}

Upstream::Upstream(UpstreamPool& pool, Loop& loop)
    : pool_(&pool),
      loop_(loop),
      stream_(loop.io()),
      buffer_(std::make_unique_for_overwrite<char[]>(kBufferBytes)) {
  loop.watch(*this);
}

void Upstream::send(UpstreamUser& user, const Parts& request, double connect_timeout_secs) {
  assert(user_ == nullptr && !closed_);
  user_ = &user;
  request_ = request;
  sent_ = head_done_ = gather_ = last_ = delivering_ = false;
  size_ = at_ = scanned_ = 0;
  ++calls_;
  if (open_) return write();
  set_deadline(after_seconds(connect_timeout_secs));
  connect();
}

void Upstream::connect() {
  const Url& url = pool_->url();
  ErrorCode error;
  const asio::ip::address address = asio::ip::make_address(url.host, error);
  if (!error) return connect_to({Endpoint(address, url.port)}, 0);
  const auto resolver = std::make_shared<Resolver>(loop_.io());
  resolver->async_resolve(
      url.host, std::to_string(url.port),
      [self = shared_from_this(), resolver](ErrorCode failed, const Resolver::results_type& found) {
        if (self->closed_) return;
        if (failed) return self->broken({Code::unavailable, "resolve the worker's name"});
        std::vector<Endpoint> endpoints;
        for (const auto& entry : found) endpoints.push_back(entry.endpoint());
        self->connect_to(std::move(endpoints), 0);
      });
}

void Upstream::connect_to(std::vector<Endpoint> endpoints, std::size_t next) {
  stream_.close();
  const Endpoint endpoint = endpoints[next];
  stream_.socket().async_connect(
      endpoint,
      [self = shared_from_this(), endpoints = std::move(endpoints), next](ErrorCode error) mutable {
        if (self->closed_) return;
        if (!error) return self->connected();
        if (next + 1 < endpoints.size()) return self->connect_to(std::move(endpoints), next + 1);
        self->broken({Code::unavailable, "connect to the worker", error.value()});
      });
}

void Upstream::connected() {
  ErrorCode ignored;
  stream_.socket().set_option(asio::ip::tcp::no_delay(true), ignored);
  stream_.socket().set_option(asio::socket_base::keep_alive(true), ignored);
  if (pool_ == nullptr || !pool_->url_.tls) return ready();
  stream_.secure(pool_->tls_->new_client(pool_->url_.host));
  handshake();
}

// Before the request: nothing is said to a server that is not the one it should be. Within the
// deadline of connecting.
void Upstream::handshake() {
  const TlsChannel::Want want = stream_.tls()->handshake();
  if (want == TlsChannel::Want::nothing) return ready();
  if (want == TlsChannel::Want::read || want == TlsChannel::Want::write) {
    return stream_.async_wait(want, [self = shared_from_this()](ErrorCode error) {
      if (self->closed_) return;
      if (error) return self->broken({Code::unavailable, "TLS with the worker", error.value()});
      self->handshake();
    });
  }
  log(LogLevel::warning, "http.tls_failed",
      {{"side", "client"},
       {"server", pool_ == nullptr ? std::string("?") : pool_->url_.text()},
       {"code", to_string(Code::permission)},
       {"why", stream_.tls()->problem()},
       {"hint", "compare the worker's certificate with the authorities that are trusted here"}});
  broken({Code::permission, "TLS with the worker: it shows no certificate that is trusted here"});
}

void Upstream::ready() {
  clear_deadline();
  open_ = true;
  write();
  if (!closed_) read();
}

void Upstream::write() {
  switch (output_.send(stream_, request_)) {
    case Output::Outcome::done:
      sent_ = true;
      return;
    case Output::Outcome::pending:
      return wait_writable();
    case Output::Outcome::failed:
      // Not from here: send() must not call back. The posted read sees the broken connection; if
      // the worker answered before it closed, the answer still counts.
      return;
  }
}

void Upstream::wait_writable() {
  stream_.async_wait(output_.waits_for(), [self = shared_from_this()](ErrorCode error) {
    if (self->closed_ || error || !self->output_.pending()) return;
    const Output::Outcome outcome = self->output_.resume(self->stream_);
    if (outcome == Output::Outcome::pending) return self->wait_writable();
    self->sent_ = outcome == Output::Outcome::done;
  });
}

void Upstream::read() {
  if (reading_ || closed_) return;
  assert(size_ < kBufferBytes);
  reading_ = true;
  stream_.async_read_some(buffer_.get() + size_, kBufferBytes - size_,
                          [self = shared_from_this()](ErrorCode error, std::size_t bytes) {
                            self->reading_ = false;
                            if (!self->closed_) self->on_read(error, bytes);
                          });
}

void Upstream::on_read(ErrorCode error, std::size_t bytes) {
  // Idle: the worker closed it, or says what nobody asked for. Either way it is of no more use.
  if (user_ == nullptr) return close();
  size_ += bytes;
  if (!error) return advance();
  if (error == asio::error::eof && head_done_ && body_.ends_with_connection()) {
    last_ = true;
    delivering_ = true;
    return user_->on_data(Pieces{}, true);
  }
  broken({Code::peer_lost, "read the worker's answer", error.value()});
}

// Bytes have arrived and no on_data() is outstanding.
void Upstream::advance() {
  if (!head_done_ && !parse_head()) return;
  if (gather_ && !gather()) return;
  deliver();
}

// False: more bytes are needed, or the call is over.
bool Upstream::parse_head() {
  while (true) {
    const std::string_view unread(buffer_.get() + at_, size_ - at_);
    const Parse parsed = parse_response_head(unread, scanned_, head_);
    if (parsed == Parse::incomplete && size_ < kBufferBytes) {
      read();
      return false;
    }
    if (parsed != Parse::complete) {
      broken({Code::corrupt, "the worker's answer is not HTTP/1.1"});
      return false;
    }
    at_ += head_.bytes;
    scanned_ = 0;
    if (head_.status >= 200) break;
    if (head_.status == 101) {
      broken({Code::corrupt, "the worker wants another protocol"});
      return false;
    }
  }
  head_done_ = true;
  choose_framing();
  gather_ = user_->on_head(head_) && body_.has_length();
  return user_ != nullptr;
}

void Upstream::choose_framing() {
  if (head_.status == 204 || head_.status == 304) {
    body_ = BodyReader::none();
  } else if (head_.headers.chunked) {
    body_ = BodyReader::chunked();
  } else if (head_.headers.content_length.has_value()) {
    body_ = BodyReader::length(*head_.headers.content_length);
  } else {
    body_ = BodyReader::until_close();
  }
}

// A body that fits is waited for as a whole.
bool Upstream::gather() {
  if (body_.remaining() > kBufferBytes - at_) {
    gather_ = false;
    return true;
  }
  if (size_ - at_ >= body_.remaining()) return true;
  read();
  return false;
}

// One on_data() after the other, as a loop: a user that consumes inside on_data() must not nest.
void Upstream::deliver() {
  if (in_deliver_) return;
  in_deliver_ = true;
  const auto self = shared_from_this();
  while (user_ != nullptr && !delivering_ && !closed_) {
    if (last_) {
      finish();
      break;
    }
    Pieces pieces;
    at_ += body_.take({buffer_.get() + at_, size_ - at_}, pieces);
    if (body_.bad()) {
      broken({Code::corrupt, "the worker's chunked coding is bad"});
      break;
    }
    last_ = body_.done();
    if (pieces.count == 0 && !last_) {
      size_ = at_ = 0;
      read();
      break;
    }
    delivering_ = true;
    user_->on_data(pieces, last_);
  }
  in_deliver_ = false;
}

void Upstream::consumed() {
  delivering_ = false;
  deliver();
}

void Upstream::finish() {
  user_ = nullptr;
  const bool reusable = sent_ && head_.headers.keep_alive && !body_.ends_with_connection() &&
                        at_ == size_ && pool_ != nullptr;
  if (!reusable) return close();
  size_ = at_ = 0;
  read();
  pool_->give_back(shared_from_this());
}

void Upstream::abandon() {
  user_ = nullptr;
  close();
}

void Upstream::broken(Status why) {
  UpstreamUser* const user = std::exchange(user_, nullptr);
  close();
  if (user != nullptr) user->on_broken(why);
}

void Upstream::close() {
  if (closed_) return;
  closed_ = true;
  clear_deadline();
  const auto self = weak_from_this().lock();  // forget() may drop the last other owner
  stream_.close();
  if (pool_ != nullptr) std::exchange(pool_, nullptr)->forget(*this);
}

void Upstream::on_deadline() { broken({Code::timed_out, "connect to the worker"}); }

}  // namespace kvl::http
