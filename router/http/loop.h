// One event loop: an io_context, one thread, and deadlines that are looked at every tick instead of
// costing a timer each. Everything of router/http belongs to one Loop and its thread.
#pragma once

#include <algorithm>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/intrusive/list.hpp>
#include <chrono>
#include <cstdint>

namespace kvl::http {

namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;
using LoopClock = std::chrono::steady_clock;
using TimePoint = LoopClock::time_point;
// The executor's type is spelled out: the default, any_io_executor, allocates and calls virtually.
using Executor = asio::io_context::executor_type;
using Socket = asio::basic_stream_socket<asio::ip::tcp, Executor>;
using Acceptor = asio::basic_socket_acceptor<asio::ip::tcp, Executor>;
using Endpoint = asio::ip::tcp::endpoint;

constexpr auto kTick = std::chrono::milliseconds(50);

using TimedHook =
    boost::intrusive::list_base_hook<boost::intrusive::link_mode<boost::intrusive::auto_unlink>>;

// Something with a deadline. Fires at most one tick late; unlinks itself when destroyed.
class Timed : public TimedHook {
 public:
  virtual void on_deadline() = 0;

  void set_deadline(TimePoint when) {
    deadline_ = when;
    if (earliest_ != nullptr && when < *earliest_) *earliest_ = when;
  }
  void clear_deadline() { deadline_ = TimePoint::max(); }
  TimePoint deadline() const { return deadline_; }

 protected:
  Timed() = default;
  ~Timed() = default;
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  friend class Loop;
  TimePoint deadline_ = TimePoint::max();
  TimePoint* earliest_ = nullptr;  // the loop's: no deadline is before it
};

inline TimePoint after_seconds(double seconds) {
  return LoopClock::now() +
         std::chrono::duration_cast<LoopClock::duration>(std::chrono::duration<double>(seconds));
}

class Loop {
 public:
  explicit Loop(std::uint32_t index) : index_(index), timer_(io_) {}

  asio::io_context& io() { return io_; }
  std::uint32_t index() const { return index_; }

  // The object is looked at from the next tick on, until it is destroyed.
  void watch(Timed& timed) {
    timed_.push_back(timed);
    timed.earliest_ = &earliest_;
    earliest_ = std::min(earliest_, timed.deadline_);
  }

  // Runs until stop(), then fires every deadline that is set, so that calls that own themselves
  // end, and runs what is left to run: nothing waits in the loop when this returns.
  void run();
  void stop() { io_.stop(); }  // from the loop's thread

 private:
  void schedule_tick();
  void fire(TimePoint now);

  std::uint32_t index_;
  bool ticking_ = false;
  TimePoint earliest_ = TimePoint::max();
  // Before io_, and so destroyed after it: handlers that die with io_ may own what is in the list.
  boost::intrusive::list<Timed, boost::intrusive::constant_time_size<false>> timed_;
  asio::io_context io_{1};
  asio::basic_waitable_timer<LoopClock, asio::wait_traits<LoopClock>, Executor> timer_;
};

}  // namespace kvl::http
