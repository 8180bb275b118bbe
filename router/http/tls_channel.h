// TLS of one connection over its non-blocking socket: OpenSSL does the protocol, the caller waits.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>

struct ssl_st;

namespace kvl::http {

class TlsChannel {
 public:
  enum class Want {
    nothing,  // done
    read,     // again when the socket is readable
    write,    // again when the socket is writable
    closed,   // the other side has said that it ends
    failed,   // problem() says why
  };

  // Takes `ssl` (of TlsContext::new_server() or new_client()); the socket stays the caller's.
  TlsChannel(ssl_st* ssl, int fd);
  ~TlsChannel();
  TlsChannel(const TlsChannel&) = delete;
  TlsChannel& operator=(const TlsChannel&) = delete;

  // Reading and writing do it as well; a client that must know does it first.
  Want handshake();
  bool established() const;
  Want read(char* at, std::size_t room, std::size_t& got);
  // Takes what it can from the front of `parts`, which it shortens. After read or write the same
  // parts must follow.
  Want write(std::span<iovec>& parts);
  // Says that we end; without waiting for the other side.
  void say_end();

  const std::string& problem() const { return problem_; }

 private:
  Want outcome(int result);
  Want push(const char* data, std::size_t size);

  struct Free {
    void operator()(ssl_st* ssl) const;
  };
  std::unique_ptr<ssl_st, Free> ssl_;
  std::string unsent_;  // of a record that the socket did not take: must be offered again as it was
  std::string problem_;
};

}  // namespace kvl::http
