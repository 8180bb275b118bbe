// A connection's bytes: over the socket as they are, or through TLS. Sessions and upstream calls
// are the same code over both; plain costs one comparison more than the socket alone.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <memory>
#include <string>
#include <utility>

#include "router/http/loop.h"
#include "router/http/tls_channel.h"

namespace kvl::http {

class Stream {
 public:
  explicit Stream(Socket socket) : socket_(std::move(socket)) {}
  explicit Stream(asio::io_context& io) : socket_(io) {}

  Socket& socket() { return socket_; }
  // Everything from here on goes through TLS; the socket is connected. Takes `ssl`.
  void secure(ssl_st* ssl) { tls_ = std::make_unique<TlsChannel>(ssl, socket_.native_handle()); }
  TlsChannel* tls() { return tls_.get(); }
  const TlsChannel* tls() const { return tls_.get(); }

  // As the socket's function of this name. Whoever owns the stream is kept by the handler.
  template <typename Handler>
  void async_read_some(char* at, std::size_t room, Handler handler) {
    if (tls_ == nullptr) {
      return socket_.async_read_some(asio::buffer(at, room), std::move(handler));
    }
    std::size_t got = 0;
    const TlsChannel::Want want = tls_->read(at, room, got);
    if (waits(want)) return read_later(want, at, room, std::move(handler));
    asio::post(socket_.get_executor(), [handler = std::move(handler), error = error_of(want),
                                        got]() mutable { handler(error, got); });
  }

  // Waits for what TLS wants.
  template <typename Handler>
  void async_wait(TlsChannel::Want want, Handler handler) {
    socket_.async_wait(want == TlsChannel::Want::read ? Socket::wait_read : Socket::wait_write,
                       std::move(handler));
  }

  // Our direction ends.
  void end_sending(ErrorCode& error) {
    if (tls_ != nullptr) tls_->say_end();
    socket_.shutdown(Socket::shutdown_send, error);
  }
  void close() {
    ErrorCode ignored;
    socket_.close(ignored);
  }

 private:
  static bool waits(TlsChannel::Want want) {
    return want == TlsChannel::Want::read || want == TlsChannel::Want::write;
  }
  static ErrorCode error_of(TlsChannel::Want want) {
    if (want == TlsChannel::Want::nothing) return {};
    if (want == TlsChannel::Want::closed) return asio::error::eof;
    return asio::error::connection_reset;
  }

  template <typename Handler>
  void read_later(TlsChannel::Want want, char* at, std::size_t room, Handler handler) {
    async_wait(want, [this, at, room, handler = std::move(handler)](ErrorCode error) mutable {
      if (!error && !socket_.is_open()) error = asio::error::operation_aborted;
      std::size_t got = 0;
      if (!error) {
        const TlsChannel::Want next = tls_->read(at, room, got);
        if (waits(next)) return read_later(next, at, room, std::move(handler));
        error = error_of(next);
      }
      handler(error, got);
    });
  }

  Socket socket_;
  std::unique_ptr<TlsChannel> tls_;
};

}  // namespace kvl::http
