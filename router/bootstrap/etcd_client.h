// Calls to an etcd cluster: one member after the other until one answers or the deadline passes, a
// token where there is a user. All of it on one loop; nothing here blocks.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/metrics.h"
#include "kvl/status.h"
#include "router/http/loop.h"
#include "router/http/upstream.h"
#include "router/http/url.h"

namespace kvl::bootstrap::etcd {

struct ClientOptions {
  std::vector<http::Url> endpoints;  // at least one
  std::uint32_t timeout_ms = 1500;   // of a call, over all members
  std::string user, password;        // user "": none
  std::shared_ptr<TlsContext> tls;   // needed for endpoints with https
};

// Written by the loop's thread, read by any.
struct ClientCounters {
  static constexpr std::size_t kCodes = static_cast<std::size_t>(Code::internal) + 1;
  Counter calls_total, failovers_total, tokens_total;
  std::array<Counter, kCodes> failed_calls;  // by Code
};

class Client final : public http::Timed {
 public:
  // The views live for the call only. Errors: not_found (lease), aborted (a condition that does not
  // hold: the lease exists already, the revision has been compacted), exhausted, permission,
  // invalid_argument, unavailable (no member answered in time), corrupt.
  using Answered = std::function<void(const Status&, std::string_view body)>;

  Client(http::Loop& loop, ClientOptions options);
  ~Client();

  // Calls back once, later, within the options' timeout. Every call is one that may be made twice.
  // exhausted, at once, when too many are under way.
  void call(std::string_view path, std::string body, Answered answered);
  // No new calls, no retries: what is under way ends as aborted.
  void stop();

  // The member in use: a watch goes to the same one.
  std::size_t endpoint() const { return endpoint_; }
  http::UpstreamPool& pool() { return *pools_[endpoint_]; }
  // That member is of no use: the next one from now on.
  void leave(std::size_t endpoint);
  // "Authorization: …" with its line end; "" without a user or before the first call.
  std::string authorization() const;
  void drop_token() { token_.clear(); }

  const ClientCounters& counters() const { return counters_; }
  std::string endpoint_text() const { return pools_[endpoint_]->url().text(); }

 private:
  struct Call;
  using CallPtr = std::shared_ptr<Call>;

  void on_deadline() override;
  void start(const CallPtr& call);
  void answered(const CallPtr& call, std::size_t endpoint, int status, std::string_view body,
                const Status& why);
  void try_again(const CallPtr& call, std::size_t endpoint);
  void count_failed(Code code);
  void finish(const CallPtr& call, const Status& status, std::string_view body);
  void start_waiting();
  void authenticate();
  void authenticated(std::size_t endpoint, int status, std::string_view body);
  double attempt_secs(http::TimePoint deadline) const;

  http::Loop& loop_;
  const ClientOptions options_;
  std::vector<std::unique_ptr<http::UpstreamPool>> pools_;  // one per member
  std::size_t endpoint_ = 0;
  std::size_t under_way_ = 0;
  std::deque<CallPtr> waiting_;  // for room, for a token, or for the next try
  std::string token_;
  bool authenticating_ = false;
  bool stopping_ = false;
  ClientCounters counters_;
};

}  // namespace kvl::bootstrap::etcd
