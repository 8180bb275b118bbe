// The loop's tick: deadlines that have passed fire one after the other.
#include "router/http/loop.h"

#include <boost/asio/error.hpp>

namespace kvl::http {

void Loop::run() {
  ticking_ = true;
  schedule_tick();
  io_.run();
  ticking_ = false;
  timer_.cancel();
  fire(TimePoint::max() - LoopClock::duration(1));
  io_.restart();
  io_.poll();
}

void Loop::schedule_tick() {
  timer_.expires_after(kTick);
  timer_.async_wait([this](ErrorCode error) {
    if (error || !ticking_) return;
    fire(LoopClock::now());
    schedule_tick();
  });
}

void Loop::fire(TimePoint now) {
  // on_deadline() may destroy any of the objects, so each firing starts the walk anew. A deadline
  // is cleared before it fires: the walks end.
  bool fired = true;
  while (fired) {
    fired = false;
    for (Timed& timed : timed_) {
      if (timed.deadline() > now) continue;
      timed.clear_deadline();
      timed.on_deadline();
      fired = true;
      break;
    }
  }
}

}  // namespace kvl::http
