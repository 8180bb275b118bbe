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
  // Thousands of idle connections must not be walked at each tick: mostly nothing is due.
  while (earliest_ <= now) {
    earliest_ = TimePoint::max();
    Timed* due = nullptr;
    for (Timed& timed : timed_) {
      if (due == nullptr && timed.deadline_ <= now) {
        due = &timed;
      } else {
        earliest_ = std::min(earliest_, timed.deadline_);
      }
    }
    if (due == nullptr) return;
    // It may destroy any of the objects: the next one is looked for anew. Its deadline is cleared
    // before it fires, so that this ends.
    due->clear_deadline();
    due->on_deadline();
  }
}

}  // namespace kvl::http
