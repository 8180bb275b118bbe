// Connections to one worker, kept alive between requests, and the call that is in progress on each.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/status.h"
#include "kvl/tls.h"
#include "router/http/body.h"
#include "router/http/head.h"
#include "router/http/loop.h"
#include "router/http/output.h"
#include "router/http/stream.h"
#include "router/http/url.h"

namespace kvl::http {

class UpstreamPool;

// Who made a call. Nothing is called from inside send() or consumed() of the same call except
// on_data() from consumed(), never nested.
class UpstreamUser {
 public:
  // The answer's head; its views live until the first consumed(). Returns true to get a short body
  // of known length in one piece, false to get bytes as they come.
  virtual bool on_head(const ResponseHead& head) = 0;
  // Payload, framing removed. The views live until consumed(), which must be called, at once or
  // later, before more is read. `last`: the answer is complete; there may be no bytes.
  virtual void on_data(const Pieces& pieces, bool last) = 0;
  // The connection is gone before the answer was complete; nothing else follows.
  // unavailable: it could not be opened; permission: its certificate is no good, or it speaks no
  // TLS; peer_lost; timed_out (connecting); corrupt: not HTTP.
  virtual void on_broken(const Status& why) = 0;

 protected:
  ~UpstreamUser() = default;
};

class Upstream final : public std::enable_shared_from_this<Upstream>, public Timed {
 public:
  Upstream(UpstreamPool& pool, Loop& loop);

  // Sends a request: the bytes stay valid until request_sent() or until the call is over.
  void send(UpstreamUser& user, const Parts& request, double connect_timeout_secs);
  void consumed();
  // Ends the call in whatever state it is, silently; the connection is closed.
  void abandon();

  bool request_sent() const { return sent_; }
  // It was kept alive: a failure before the first byte may only mean that it had grown old.
  bool reused() const { return calls_ > 1; }
  bool answer_started() const { return size_ > 0 || head_done_; }
  std::uint64_t body_remaining() const { return body_.remaining(); }

  void on_deadline() override;

 private:
  friend class UpstreamPool;
  void connect();
  void connect_to(std::vector<Endpoint> endpoints, std::size_t next);
  void connected();
  void handshake();
  void ready();
  void write();
  void wait_writable();
  void read();
  void on_read(ErrorCode error, std::size_t bytes);
  void advance();
  bool parse_head();
  void choose_framing();
  bool gather();
  void deliver();
  void finish();
  void broken(Status why);
  void close();

  UpstreamPool* pool_;  // null once the pool is gone
  Loop& loop_;
  Stream stream_;
  UpstreamUser* user_ = nullptr;
  bool open_ = false, closed_ = false, reading_ = false, sent_ = false;
  bool head_done_ = false, gather_ = false, last_ = false;
  bool delivering_ = false;  // on_data() was called, consumed() was not
  bool in_deliver_ = false;
  std::uint64_t calls_ = 0;
  Parts request_;
  Output output_;
  std::unique_ptr<char[]> buffer_;
  std::size_t size_ = 0;  // bytes in buffer_
  std::size_t at_ = 0;    // of them, taken
  std::size_t scanned_ = 0;
  ResponseHead head_;
  BodyReader body_ = BodyReader::none();
};

// The idle connections to one worker, of one loop. Calls in progress outlive the pool.
class UpstreamPool {
 public:
  // `tls` is needed for a URL with https and not looked at otherwise.
  UpstreamPool(Loop& loop, Url url, std::shared_ptr<TlsContext> tls = nullptr);
  ~UpstreamPool();
  UpstreamPool(const UpstreamPool&) = delete;
  UpstreamPool& operator=(const UpstreamPool&) = delete;

  // A connection without a call: the most recently used one, or a new one that send() will open.
  std::shared_ptr<Upstream> take();
  const Url& url() const { return url_; }
  std::uint64_t opened() const { return opened_; }

 private:
  friend class Upstream;
  void give_back(std::shared_ptr<Upstream> connection);
  void forget(const Upstream& connection);

  static constexpr std::size_t kIdleMax = 1024;
  Loop& loop_;
  Url url_;
  std::shared_ptr<TlsContext> tls_;  // others hold it to reload it
  std::vector<std::shared_ptr<Upstream>> idle_;
  std::vector<Upstream*> all_;
  std::uint64_t opened_ = 0;
};

}  // namespace kvl::http
