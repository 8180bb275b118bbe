// One request on its way: legs to one or two workers, one answer to the client.
//
//   calling ──► relaying ──► draining ──► over
//      │ ▲          │ (decode died: error event)   ▲
//      └─┘ retry    └──────────────────────────────┤
//      └── no worker left, client gone, deadline ──┘
//
// calling: nothing of an answer has been relayed; a failure of either leg ends the other and tries
// another pair with a new room. relaying: the client is getting bytes; prefill's failure does not
// matter any more, decode's ends the stream. draining: the client has its answer; prefill's is read
// to its end, so that its connection can be used again.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "kvl/trace.h"
#include "router/api/leg.h"
#include "router/api/relay.h"
#include "router/http/body_scan.h"
#include "router/http/one_shot.h"
#include "router/http/session.h"

namespace kvl::router {

struct ExchangePlan {
  bool disaggregated = false;             // a prefill leg beside the answering one
  WorkerRole role = WorkerRole::regular;  // of the worker that answers
  http::BodyScan scan;                    // of a disaggregated request
  PromptKeys prompt;                      // empty: no policy asks for it
  std::string session;                    // likewise
};

class Exchange final : public http::SessionUser,
                       public http::Timed,
                       public LegOwner,
                       public std::enable_shared_from_this<Exchange> {
 public:
  // Owns itself until it is over. Answers the session's request, at once when no worker can.
  static void start(LoopContext& context, http::Session& session, ExchangePlan plan);

  Exchange(LoopContext& context, http::Session& session, ExchangePlan plan);
  ~Exchange();

 private:
  enum class State : std::uint8_t { calling, relaying, draining, over };

  void on_written() override;
  void on_client_gone() override;
  void on_deadline() override;
  Leg& at_fault(Leg& leg, const http::ResponseHead& head) override;
  bool on_leg_head(Leg& leg, const http::ResponseHead& head) override;
  void on_leg_data(Leg& leg, const http::Pieces& pieces, bool last) override;
  void on_leg_broken(Leg& leg, const Status& why) override;

  void begin();
  void prepare();
  void mark(Stage stage, Code code = Code::ok, std::string_view what = {}) const;
  // A worker for the leg, not one of those that failed it.
  LoopContext::Picked pick(const Leg& leg);
  void assign(Leg& leg, LoopContext::Picked picked);
  void launch();
  http::Parts request_for(const Leg& leg) const;
  bool try_again(Leg& failed);
  void relay_from(Leg& leg, const http::ResponseHead& head);
  void written();
  void break_stream(Code code, std::string_view message);
  // Counts a request that failed and says so; no more than once for each.
  void tell(Code code, std::string_view why);
  void finish(bool reusable);
  void fail(int status, Code code, std::string_view message);
  void end_if_idle();
  void abort(Leg& leg);
  void post_abort(const Worker& worker, http::OneShotDone done);
  void count_answer(int status);
  Leg& other(Leg& leg) { return &leg == &prefill_ ? answer_ : prefill_; }
  WorkerRole role_of(const Leg& leg) const {
    return &leg == &prefill_ ? WorkerRole::prefill : plan_.role;
  }
  std::string describe(const Leg& leg) const;

  LoopContext& context_;
  std::shared_ptr<http::Session> session_;  // null once the client has its answer, or has gone
  const ExchangePlan plan_;
  State state_ = State::calling;
  Leg prefill_, answer_;
  std::uint32_t attempts_ = 0;
  std::uint64_t room_ = 0, room_before_ = 0;  // of this attempt and of the one before

  std::string request_line_, headers_, length_, fields_;  // the request's own parts, see prepare()
  std::string rid_;                                       // given by us, this attempt
  std::optional<Relay> relay_;
  Leg* source_ = nullptr;  // the leg whose answer is relayed
  bool last_ = false;      // the write in progress is the last one
  http::TimePoint started_;
  std::shared_ptr<Exchange> self_;
};

}  // namespace kvl::router
