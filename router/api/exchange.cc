// The decisions of an exchange: who is called, what a failure means, when it is over.
#include "router/api/exchange.h"

#include <algorithm>
#include <utility>

#include "kvl/failure.h"
#include "kvl/log.h"
#include "router/api/forward.h"
#include "router/http/message.h"

namespace kvl::router {
namespace {

using http::Output;

constexpr double kAbortTimeoutSecs = 2;
constexpr double kAbortBeforeRetrySecs = 0.5;
constexpr double kBreakTimeoutSecs = 5;  // for a client to take the last event of a broken stream

// Another worker may do better; anything else is the request's own fault, or an answer.
bool retryable(int status) {
  return status == 408 || status == 429 || status == 500 || (status >= 502 && status <= 504);
}

// What an answer's status says, for the trace.
Code code_of(int status) {
  if (status < 400) return Code::ok;
  if (status < 500) return status == 499 ? Code::aborted : Code::invalid_argument;
  return status == 504 ? Code::timed_out : Code::unavailable;
}

std::uint64_t microseconds_since(http::TimePoint start) {
  const auto passed = http::LoopClock::now() - start;
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(passed).count());
}

}  // namespace

void Exchange::start(LoopContext& context, http::Session& session, ExchangePlan plan) {
  const auto exchange = std::make_shared<Exchange>(context, session, std::move(plan));
  exchange->self_ = exchange;
  session.attach(*exchange);
  context.loop().watch(*exchange);
  exchange->set_deadline(http::after_seconds(context.options().request_timeout_secs));
  exchange->begin();
}

Exchange::Exchange(LoopContext& context, http::Session& session, ExchangePlan plan)
    : context_(context),
      session_(session.shared_from_this()),
      plan_(std::move(plan)),
      prefill_(context, *this),
      answer_(context, *this),
      request_line_(forward_request_line(session.request())),
      headers_(forward_request_headers(session.request())),
      started_(http::LoopClock::now()) {
  ++context_.exchanges;
}

Exchange::~Exchange() { --context_.exchanges; }

std::string Exchange::describe(const Leg& leg) const {
  return std::string(to_string(role_of(leg))) + " worker " + leg.worker()->url.text();
}

// The first attempt.
void Exchange::begin() {
  for (Leg* const leg : {&prefill_, &answer_}) {
    if (leg == &prefill_ && !plan_.disaggregated) continue;
    LoopContext::Picked picked = pick(*leg);
    if (picked.worker == nullptr) {
      return fail(503, Code::unavailable,
                  "no " + std::string(to_string(role_of(*leg))) + " worker is available");
    }
    assign(*leg, std::move(picked));
  }
  prepare();
  launch();
}

LoopContext::Picked Exchange::pick(const Leg& leg) {
  return context_.pick(role_of(leg), leg.tried, {.prompt = plan_.prompt, .session = plan_.session});
}

// Prefill computes, decode keeps the context; a worker that does both has both.
void Exchange::assign(Leg& leg, LoopContext::Picked picked) {
  const std::uint64_t tokens = plan_.prompt.tokens();
  const bool computes = &leg == &prefill_ || !plan_.disaggregated;
  if (computes) {
    context_.counters().prompt_tokens_total.add(tokens);
    context_.counters().cached_tokens_total.add(picked.cached_tokens);
  }
  leg.assign(std::move(picked.worker),
             {.prefill_tokens = computes ? tokens - picked.cached_tokens : 0,
              .context_tokens = &leg == &prefill_ ? 0 : tokens});
}

// What is new with each attempt: the session's fields and, with them, the length.
void Exchange::prepare() {
  ++attempts_;
  const std::string_view body = session_->body();
  fields_.clear();
  if (plan_.disaggregated) {
    const std::uint64_t sequences = std::uint64_t{plan_.scan.prompts} * plan_.scan.n;
    const std::uint64_t room = context_.rooms().reserve(sequences);
    room_before_ = std::exchange(room_, room);
    if (plan_.scan.has_fields) fields_ += ',';
    fields_.append(prefill_.worker()->session_prefix).append(std::to_string(room));
    if (context_.options().inject_rid && plan_.scan.rid.empty() && sequences == 1) {
      rid_ = "\"kvl-" + std::to_string(room) + "\"";
      fields_.append(",\"rid\":").append(rid_);
    }
  }
  const std::size_t length = body.size() + fields_.size();
  length_.clear();
  if (length > 0 || session_->request().method != "GET") {
    length_.append("Content-Length: ").append(std::to_string(length)).append("\r\n");
  }
  length_.append("\r\n");
  mark(Stage::received);
}

// Request ids are traced as the worker knows them: without the quotes of the body.
void Exchange::mark(Stage stage, Code code, std::string_view what) const {
  std::string_view rid = rid_.empty() ? plan_.scan.rid : std::string_view(rid_);
  if (rid.size() >= 2 && rid.front() == '"') rid = rid.substr(1, rid.size() - 2);
  trace({.stage = stage,
         .room = room_,
         .before = room_before_,
         .rid = rid,
         .side = "router",
         .code = code,
         .what = what});
}

void Exchange::launch() {
  if (plan_.disaggregated) prefill_.send(request_for(prefill_));
  answer_.send(request_for(answer_));
  if (!tracing()) return;
  std::string to = describe(answer_);
  if (plan_.disaggregated) to = describe(prefill_) + ", " + to;
  mark(Stage::forwarded, Code::ok, to);
}

http::Parts Exchange::request_for(const Leg& leg) const {
  http::Parts parts;
  parts.add(request_line_);
  parts.add(leg.worker()->host_line);
  parts.add(headers_);
  parts.add(length_);
  const std::string_view body = session_->body();
  const std::size_t split = plan_.disaggregated ? plan_.scan.last_brace : body.size();
  parts.add(body.substr(0, split));
  parts.add(fields_);
  parts.add(body.substr(split));
  return parts;
}

// Another attempt after `failed` failed; false when there is nobody left to ask.
bool Exchange::try_again(Leg& failed) {
  if (state_ != State::calling || attempts_ > context_.options().retry_max_retries) return false;
  if (failed.stale() && !failed.forgave_stale) {
    failed.forgave_stale = true;
  } else {
    failed.tried.push_back(failed.worker()->id);
  }
  Leg& peer = other(failed);
  LoopContext::Picked next = pick(failed), next_peer;
  if (plan_.disaggregated) next_peer = pick(peer);
  if (next.worker == nullptr || (plan_.disaggregated && next_peer.worker == nullptr)) return false;

  context_.counters().retries_total.add();
  failed.cancel();
  const bool had_peer = peer.active();
  const WorkerPtr old_peer = peer.worker();
  peer.cancel();
  relay_.reset();
  source_ = nullptr;

  assign(failed, std::move(next));
  if (plan_.disaggregated) assign(peer, std::move(next_peer));
  // The other worker still waits for a transfer that will not come. When it is asked again under
  // the same request id, the abort must come first, or it would hit the new attempt.
  const bool same_id = rid_.empty() && !plan_.scan.rid.empty();
  if (had_peer && same_id && peer.worker() == old_peer) {
    post_abort(*old_peer, [weak = weak_from_this()](int, std::string_view, const Status&) {
      const auto self = weak.lock();
      if (self == nullptr || self->state_ != State::calling || self->session_ == nullptr) return;
      self->prepare();
      self->launch();
    });
    return true;
  }
  if (had_peer) post_abort(*old_peer, nullptr);
  prepare();
  launch();
  return true;
}

// Workers that say so are believed: one whose peer was lost is as good as before.
Leg& Exchange::at_fault(Leg& leg, const http::ResponseHead& head) {
  const bool peer = plan_.disaggregated && head.headers.find("x-kvlane-at-fault") == "peer";
  return peer ? other(leg) : leg;
}

bool Exchange::on_leg_head(Leg& leg, const http::ResponseHead& head) {
  const auto self = shared_from_this();
  if (state_ != State::calling) return false;
  const bool good = head.status >= 200 && head.status < 300;
  if (&leg == &prefill_ && good) return false;
  if (!good) {
    Counter& failures = &leg == &prefill_ ? context_.counters().prefill_failures_total
                                          : context_.counters().decode_failures_total;
    if (head.status >= 500) failures.add();
    if (retryable(head.status) && try_again(at_fault(leg, head))) return false;
    abort(other(leg));
  }
  relay_from(leg, head);
  // A stream goes on piece by piece. Anything else that is short is waited for as a whole, so that
  // a worker that dies in the middle of it can still be replaced.
  return !head.headers.find("content-type").starts_with("text/event-stream");
}

void Exchange::relay_from(Leg& leg, const http::ResponseHead& head) {
  source_ = &leg;
  relay_.emplace(*session_);
  relay_->begin(head);
}

void Exchange::on_leg_data(Leg& leg, const http::Pieces& pieces, bool last) {
  const auto self = shared_from_this();
  if (source_ != &leg) {
    leg.consumed(last);
    return end_if_idle();
  }
  if (state_ == State::calling) {
    if (pieces.bytes == 0 && !last) return leg.consumed(false);
    state_ = State::relaying;
    mark(Stage::answering);
    context_.counters().first_byte_us_total.add(microseconds_since(started_));
  }
  last_ = last;
  switch (relay_->write(pieces, last)) {
    case Output::Outcome::done:
      return written();
    case Output::Outcome::pending:
      return;
    case Output::Outcome::failed:
      session_->detach();
      session_->close();
      return on_client_gone();
  }
}

void Exchange::on_written() {
  const auto self = shared_from_this();
  written();
}

void Exchange::written() {
  if (source_ != nullptr) source_->consumed(last_);
  if (last_) finish(relay_->reusable());
}

void Exchange::on_leg_broken(Leg& leg, const Status& why) {
  const auto self = shared_from_this();
  const bool prefill = &leg == &prefill_;
  if (!leg.stale()) {
    (prefill ? context_.counters().prefill_failures_total
             : context_.counters().decode_failures_total)
        .add();
  }
  if (state_ == State::relaying && source_ == &leg) {
    return break_stream(why.code(), describe(leg) + " broke off: " + why.to_string());
  }
  if (state_ != State::calling) return end_if_idle();
  if (try_again(leg)) return;
  fail(why.code() == Code::timed_out ? 504 : 502, why.code(),
       describe(leg) + ": " + why.to_string());
}

void Exchange::tell(Code code, std::string_view why) {
  const auto cause = std::min(static_cast<std::size_t>(code), RouterCounters::kCodes - 1);
  context_.counters().failed[cause].add();
  log(LogLevel::warning, "router.request_failed",
      {{"room", room_}, {"code", to_string(code)}, {"why", why}, {"hint", remedy(code)}});
}

void Exchange::break_stream(Code code, std::string_view message) {
  context_.counters().broken_streams_total.add();
  tell(code, message);
  source_ = nullptr;
  last_ = true;
  abort(prefill_);
  abort(answer_);
  switch (relay_->write_break(502, message)) {
    case Output::Outcome::done:
      return finish(relay_->reusable());
    case Output::Outcome::pending:
      return set_deadline(http::after_seconds(kBreakTimeoutSecs));
    case Output::Outcome::failed:
      return finish(false);
  }
}

// The client has all it gets.
void Exchange::finish(bool reusable) {
  count_answer(source_ != nullptr ? source_->status() : 502);
  state_ = State::draining;
  source_ = nullptr;
  // The body belongs to the session: what has not been sent by now never will be.
  if (!prefill_.request_sent()) prefill_.cancel();
  if (!answer_.request_sent()) answer_.cancel();
  const auto session = std::move(session_);
  session->end(reusable);
  end_if_idle();
}

void Exchange::fail(int status, Code code, std::string_view message) {
  count_answer(status);
  tell(code, message);
  abort(prefill_);
  abort(answer_);
  state_ = State::draining;
  const auto session = std::move(session_);
  session->reply({.status = status, .body = http::error_body(status, "upstream_error", message)});
  end_if_idle();
}

void Exchange::on_client_gone() {
  const auto self = shared_from_this();
  context_.counters().client_gone_total.add();
  mark(Stage::answered, Code::aborted, "the client has gone");
  state_ = State::draining;
  source_ = nullptr;
  abort(prefill_);
  abort(answer_);
  session_.reset();
  end_if_idle();
}

void Exchange::on_deadline() {
  const auto self = shared_from_this();
  if (state_ == State::draining) {
    prefill_.cancel();
    answer_.cancel();
    return end_if_idle();
  }
  context_.counters().timeouts_total.add();
  if (state_ == State::calling)
    return fail(504, Code::timed_out, "no answer within the request timeout");
  if (last_ || session_->writing()) {
    // The client does not take what it has asked for.
    session_->detach();
    session_->close();
    return on_client_gone();
  }
  break_stream(Code::timed_out, "the request timeout has passed");
}

void Exchange::end_if_idle() {
  if (state_ != State::draining || prefill_.active() || answer_.active()) return;
  state_ = State::over;
  clear_deadline();
  self_.reset();  // the caller holds another reference
}

// Ends a leg that is not over, and tells its worker, which may not notice a closed connection soon.
void Exchange::abort(Leg& leg) {
  if (!leg.active()) return leg.cancel();
  leg.cancel();
  post_abort(*leg.worker(), nullptr);
}

void Exchange::post_abort(const Worker& worker, http::OneShotDone done) {
  const std::string_view rid = rid_.empty() ? plan_.scan.rid : std::string_view(rid_);
  for_each_rid(rid, [&](std::string_view id) {
    context_.counters().aborts_total.add();
    const double timeout = done != nullptr ? kAbortBeforeRetrySecs : kAbortTimeoutSecs;
    http::call_once(
        context_.loop(), context_.pool(worker),
        {.method = "POST",
         .path = "/abort_request",
         .body = "{\"rid\":" + std::string(id) + "}",
         .timeout_secs = timeout},
        done != nullptr ? std::exchange(done, nullptr)
                        : [](int, std::string_view, const Status&) {});
  });
  if (done != nullptr) done(0, {}, {});
}

void Exchange::count_answer(int status) {
  if (tracing()) mark(Stage::answered, code_of(status), std::to_string(status));
  RouterCounters& counters = context_.counters();
  Counter& answers = status < 300   ? counters.answers_2xx_total
                     : status < 500 ? counters.answers_4xx_total
                                    : counters.answers_5xx_total;
  answers.add();
  counters.duration_us_total.add(microseconds_since(started_));
}

}  // namespace kvl::router
