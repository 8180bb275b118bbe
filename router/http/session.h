// One client connection: reads requests, hands each to a handler, writes what the handler gives.
#pragma once

#include <array>
#include <boost/asio/ip/address.hpp>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "kvl/metrics.h"
#include "kvl/tls.h"
#include "router/http/body.h"
#include "router/http/head.h"
#include "router/http/loop.h"
#include "router/http/output.h"
#include "router/http/rate_limit.h"
#include "router/http/refusals.h"
#include "router/http/stream.h"

namespace kvl::http {

class Session;

// Answers requests. handle() may answer before it returns or later; each request gets one answer.
class RequestHandler {
 public:
  virtual ~RequestHandler() = default;
  virtual void handle(Session& session) = 0;
};

// Who answers a request later. The session holds no ownership: detach() before the user ends.
class SessionUser {
 public:
  virtual void on_written() = 0;      // a write() that answered pending is out
  virtual void on_client_gone() = 0;  // no answer will reach the client any more; already detached

 protected:
  ~SessionUser() = default;
};

struct SessionLimits {
  std::uint64_t body_bytes_max = 512ull << 20;
  double header_timeout_secs = 30;
  double idle_timeout_secs = 75;
  std::uint64_t buffered_bytes_max = 1ull << 30;  // of large bodies, all connections of the loop
  std::uint32_t per_address_max = 0;              // connections; 0: no limit
  double per_address_rate = 0;                    // requests a second; 0: no limit
};

// Written by the loop's thread.
struct HttpCounters {
  Counter connections_total, requests_total, timeouts_total;
  RefusalCounters refused;
  Counter bytes_in_total, bytes_out_total;
  Counter tls_failed_total;  // connections that ended before they were secure
};

// What a server is made of, shared by its sessions; lives as long as any of them.
struct SessionContext {
  Loop& loop;
  RequestHandler& handler;
  SessionLimits limits;
  HttpCounters counters;
  std::shared_ptr<TlsContext> tls = nullptr;  // null: plain HTTP; others hold it to reload it
  std::size_t open = 0;                       // sessions alive
  std::uint64_t buffered = 0;  // bytes of large bodies that have arrived and are not done with
  std::map<asio::ip::address, std::uint32_t> by_address;  // where there is a limit
  RateLimit rate{limits.per_address_rate};
  bool stopping = false;  // answers say "Connection: close", idle sessions end
};

// A whole answer. `headers` are complete lines, each ended by CRLF.
struct Reply {
  int status = 200;
  std::string_view content_type = "application/json";
  std::string body;
  std::string headers;
};

using SessionHook =
    boost::intrusive::list_base_hook<boost::intrusive::tag<Session>,
                                     boost::intrusive::link_mode<boost::intrusive::auto_unlink>>;

class Session final : public std::enable_shared_from_this<Session>,
                      public Timed,
                      public SessionHook {
 public:
  // `address` is counted where the limits say so.
  Session(SessionContext& context, Socket socket, const asio::ip::address& address = {});
  ~Session();

  void start();
  // Waits for a request's head: nobody loses an answer when it is closed.
  bool idle() const { return state_ == State::head; }
  // Graceful: at once when idle, else after the answer in progress. close(): now.
  void stop();
  void close();

  // The request being handled; the views live until its answer is complete.
  const RequestHead& request() const { return head_; }
  std::string_view body() const { return body_; }
  SessionContext& context() { return context_; }

  // A whole answer at once, to a client that must not know more than that; counted and told.
  void turn_away(const Reply& reply);
  // A whole answer at once.
  void reply(const Reply& reply);

  // An answer in parts, by a user that is told when a pending write is out and when the client
  // leaves. The user's first bytes are the head; keep_alive() says what it must promise. end()
  // after the last byte was taken; `reusable` false closes the connection.
  void attach(SessionUser& user) { user_ = &user; }
  void detach() { user_ = nullptr; }
  bool keep_alive() const {
    return head_.headers.keep_alive && !head_.http_1_0 && !context_.stopping;
  }
  bool writing() const { return output_.pending(); }
  Output::Outcome write(Parts& parts);
  void end(bool reusable);

  void on_deadline() override;

 private:
  enum class State : std::uint8_t { head, body, answering, lingering, closed };
  struct Buffer {
    std::unique_ptr<char[]> data;
    std::size_t capacity = 0, size = 0;
    void reserve(std::size_t bytes);
    std::string_view view() const { return {data.get(), size}; }
  };
  void read();
  void on_read(ErrorCode error, std::size_t bytes);
  void on_lookahead(ErrorCode error);
  void parse_head();
  void start_body();
  void continue_body();
  void continue_chunked();
  void limit_body_time(std::uint64_t bytes);
  bool buffer(std::uint64_t bytes);
  void release_body();
  void dispatch(std::size_t consumed);
  void answer_done();
  void next_request();
  void wait_writable();
  void refuse(int status, const char* why);
  void linger();
  void client_gone();
  void count_insecure();
  Buffer& in() { return buffers_[current_]; }
  Buffer& ahead() { return buffers_[1 - current_]; }

  SessionContext& context_;
  Stream stream_;
  State state_ = State::head;
  bool reading_ = false;
  bool reusable_ = true;
  bool replying_ = false;  // by reply(), not by a user
  unsigned current_ = 0;
  std::array<Buffer, 2> buffers_;  // the request in work, and what came after it
  Buffer large_;                   // a body that does not fit beside its head
  std::size_t scanned_ = 0;
  std::size_t chunk_read_ = 0;  // chunked body: bytes of in() decoded so far
  RequestHead head_;
  TimePoint body_start_;
  BodyReader body_reader_ = BodyReader::none();
  std::string_view body_;
  SessionUser* user_ = nullptr;
  Output output_;
  std::string reply_;
  std::size_t lingered_ = 0;
  std::uint64_t buffered_ = 0;  // of context_.buffered
  asio::ip::address address_;   // counted in context_.by_address
};

}  // namespace kvl::http
