// SIGINT and SIGTERM as a function call in an ordinary thread.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace kvl::tools {

// Make it before other threads: it blocks both signals for them. `stop` runs in a thread of its
// own, once per signal. A third signal ends the process at once.
class StopOnSignal {
 public:
  explicit StopOnSignal(std::function<void()> stop);
  ~StopOnSignal();
  StopOnSignal(const StopOnSignal&) = delete;
  StopOnSignal& operator=(const StopOnSignal&) = delete;

  // Blocks the signals in this thread and those it makes; for programs that build what `stop` stops
  // only after they have started threads.
  static void block();

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

}  // namespace kvl::tools
