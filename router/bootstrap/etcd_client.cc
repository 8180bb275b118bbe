// A call goes to the member in use; one that does not answer, or says that it has no leader, is
// left for the next one. Between two tries over all of them there is a pause of a few ticks.
#include "router/bootstrap/etcd_client.h"

#include <algorithm>
#include <utility>

#include "kvl/log.h"
#include "router/bootstrap/etcd_wire.h"
#include "router/http/one_shot.h"

namespace kvl::bootstrap::etcd {
namespace {

constexpr std::size_t kUnderWayMax = 32;
constexpr std::size_t kWaitingMax = 16384;
constexpr std::size_t kAnswerBytesMax = 256 << 20;
constexpr double kAttemptSecsMin = 0.2;
constexpr double kPauseSecs = 0.1;

// gRPC's codes, as etcd uses them.
constexpr int kInvalidArgument = 3, kDeadline = 4, kNotFound = 5, kPermission = 7, kExhausted = 8,
              kPrecondition = 9, kOutOfRange = 11, kUnavailable = 14, kUnauthenticated = 16;

// Another member, or the same one a little later, may do better.
bool passing(int status, const Failure& failure) {
  return failure.grpc_code == kUnavailable || failure.grpc_code == kDeadline ||
         failure.message.find("too many requests") != std::string::npos ||
         (status >= 500 && failure.message.empty());
}

bool wants_token(const Failure& failure) {
  if (failure.grpc_code == kUnauthenticated) return true;
  if (failure.grpc_code != kInvalidArgument) return false;
  return failure.message.find("user name is empty") != std::string::npos ||
         failure.message.find("auth") != std::string::npos;
}

Status status_of(const Failure& failure) {
  switch (failure.grpc_code) {
    case kNotFound:
      return {Code::not_found, "etcd knows no such lease"};
    case kPermission:
    case kUnauthenticated:
      return {Code::permission, "etcd refuses the user: see bootstrap.etcd_user and its password"};
    case kExhausted:
      return {Code::exhausted, "etcd is full: compact and defragment it, or raise its quota"};
    case kPrecondition:
    case kOutOfRange:
      return {Code::aborted, "etcd: a condition does not hold"};
    case kInvalidArgument:
      return {Code::invalid_argument, "etcd refuses the request"};
    default:
      return {Code::unavailable, "etcd failed"};
  }
}

}  // namespace

struct Client::Call {
  std::string path, body;
  Answered answered;
  http::TimePoint deadline;
  http::TimePoint not_before = http::TimePoint::min();
  std::size_t attempts = 0;
  bool had_new_token = false;
};

Client::Client(http::Loop& loop, ClientOptions options)
    : loop_(loop), options_(std::move(options)) {
  for (const http::Url& url : options_.endpoints) {
    pools_.push_back(std::make_unique<http::UpstreamPool>(loop, url, options_.tls));
  }
  loop.watch(*this);
}

Client::~Client() = default;

void Client::count_failed(Code code) {
  const auto cause = std::min(static_cast<std::size_t>(code), ClientCounters::kCodes - 1);
  counters_.failed_calls[cause].add();
}

void Client::call(std::string_view path, std::string body, Answered answered) {
  counters_.calls_total.add();
  if (stopping_) return answered({Code::aborted, "the server stops"}, {});
  if (waiting_.size() >= kWaitingMax) {
    count_failed(Code::exhausted);
    return answered({Code::exhausted, "too many calls to etcd are under way"}, {});
  }
  const auto call = std::make_shared<Call>();
  call->path = path;
  call->body = std::move(body);
  call->answered = std::move(answered);
  call->deadline = http::after_seconds(options_.timeout_ms * 1e-3);
  waiting_.push_back(call);
  start_waiting();
}

void Client::stop() {
  stopping_ = true;
  clear_deadline();
  for (const CallPtr& call : std::exchange(waiting_, {})) {
    call->answered({Code::aborted, "the server stops"}, {});
  }
}

std::string Client::authorization() const {
  return token_.empty() ? std::string() : "Authorization: " + token_ + "\r\n";
}

void Client::leave(std::size_t endpoint) {
  if (endpoint != endpoint_ || pools_.size() == 1) return;
  counters_.failovers_total.add();
  endpoint_ = (endpoint_ + 1) % pools_.size();
}

// Starts what may start now, and wakes up for what may start later.
void Client::start_waiting() {
  if (stopping_) return;
  const http::TimePoint now = http::LoopClock::now();
  http::TimePoint wake = http::TimePoint::max();
  std::deque<CallPtr> later;
  std::vector<CallPtr> late;
  const bool needs_token = !options_.user.empty() && token_.empty();
  while (!waiting_.empty()) {
    CallPtr call = std::move(waiting_.front());
    waiting_.pop_front();
    if (call->deadline <= now) {
      late.push_back(std::move(call));
    } else if (needs_token || under_way_ >= kUnderWayMax || call->not_before > now) {
      wake = std::min({wake, call->deadline, std::max(call->not_before, now + http::kTick)});
      later.push_back(std::move(call));
    } else {
      start(call);
    }
  }
  // start() does not call back, so nothing was added meanwhile.
  waiting_ = std::move(later);
  if (needs_token && !waiting_.empty()) authenticate();
  if (wake != http::TimePoint::max()) set_deadline(wake);
  for (const CallPtr& call : late) {
    finish(call, {Code::unavailable, "no member of etcd answered in time"}, {});
  }
}

void Client::on_deadline() { start_waiting(); }

double Client::attempt_secs(http::TimePoint deadline) const {
  const double left = std::chrono::duration<double>(deadline - http::LoopClock::now()).count();
  const double share = options_.timeout_ms * 1e-3 / static_cast<double>(pools_.size());
  return std::max(0.001, std::min(left, std::max(share, kAttemptSecsMin)));
}

void Client::start(const CallPtr& call) {
  ++under_way_;
  ++call->attempts;
  const std::size_t endpoint = endpoint_;
  http::call_once(loop_, *pools_[endpoint],
                  {.method = "POST",
                   .path = call->path,
                   .headers = authorization(),
                   .body = call->body,
                   .timeout_secs = attempt_secs(call->deadline),
                   .answer_bytes_max = kAnswerBytesMax},
                  [this, call, endpoint](int status, std::string_view body, const Status& why) {
                    answered(call, endpoint, status, body, why);
                  });
}

void Client::answered(const CallPtr& call, std::size_t endpoint, int status, std::string_view body,
                      const Status& why) {
  --under_way_;
  if (status == 200) return finish(call, {}, body);
  if (stopping_) return finish(call, {Code::aborted, "the server stops"}, {});
  const Failure failure = status == 0 ? Failure{} : decode_failure(body);
  if (status == 0 || passing(status, failure)) {
    if (status == 0 && why.code() == Code::exhausted) return finish(call, why, {});
    return try_again(call, endpoint);
  }
  if (!options_.user.empty() && wants_token(failure) && !call->had_new_token) {
    call->had_new_token = true;
    token_.clear();
    waiting_.push_front(call);
    return start_waiting();
  }
  finish(call, status_of(failure), body);
}

void Client::try_again(const CallPtr& call, std::size_t endpoint) {
  leave(endpoint);
  if (call->deadline <= http::LoopClock::now()) {
    return finish(call, {Code::unavailable, "no member of etcd answers"}, {});
  }
  // Once around at full speed, then with a pause: an election takes its time.
  if (call->attempts % pools_.size() == 0) call->not_before = http::after_seconds(kPauseSecs);
  waiting_.push_back(call);
  start_waiting();
}

void Client::finish(const CallPtr& call, const Status& status, std::string_view body) {
  if (!status.ok()) count_failed(status.code());
  call->answered(status, body);
  if (!waiting_.empty()) start_waiting();
}

void Client::authenticate() {
  if (authenticating_) return;
  authenticating_ = true;
  const std::size_t endpoint = endpoint_;
  const auto soon = http::after_seconds(options_.timeout_ms * 1e-3);
  http::call_once(loop_, *pools_[endpoint],
                  {.method = "POST",
                   .path = "/v3/auth/authenticate",
                   .body = encode_user(options_.user, options_.password),
                   .timeout_secs = attempt_secs(soon)},
                  [this, endpoint](int status, std::string_view body, const Status&) {
                    authenticated(endpoint, status, body);
                  });
}

void Client::authenticated(std::size_t endpoint, int status, std::string_view body) {
  authenticating_ = false;
  if (stopping_) return;
  if (status == 200) {
    const Result<std::string> token = decode_token(body);
    if (token.ok()) {
      counters_.tokens_total.add();
      token_ = *token;
      return start_waiting();
    }
  }
  const Failure failure = status == 0 ? Failure{} : decode_failure(body);
  if (status == 0 || passing(status, failure)) {
    leave(endpoint);
    return set_deadline(http::after_seconds(kPauseSecs));
  }
  log(LogLevel::error, "bootstrap.etcd_refused",
      {{"user", options_.user},
       {"why", failure.message},
       {"code", to_string(Code::permission)},
       {"hint", "check bootstrap.etcd_user and its password"}});
  for (const CallPtr& call : std::exchange(waiting_, {})) {
    finish(call, {Code::permission, "etcd refuses the user and its password"}, {});
  }
}

}  // namespace kvl::bootstrap::etcd
