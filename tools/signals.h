// SIGINT, SIGTERM and SIGHUP as function calls in an ordinary thread.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <thread>

#include "kvl/status.h"

namespace kvl::tools {

// Make it before other threads: it blocks the signals for them. `stop` runs in a thread of its
// own, once per signal to stop. The third one ends the process at once. `reload` is called for a
// SIGHUP.
class StopOnSignal {
 public:
  explicit StopOnSignal(std::function<void()> stop, std::function<void()> reload = {});
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

// Reloads, and says on standard error how it went.
void report_reload(const std::function<Status(std::string*)>& reload);

}  // namespace kvl::tools
