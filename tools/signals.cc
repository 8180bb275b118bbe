// A thread that waits for signals.
#include "tools/signals.h"

#include <csignal>
#include <cstdlib>
#include <ctime>
#include <utility>

namespace kvl::tools {
namespace {

sigset_t stop_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGINT);
  ::sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

void StopOnSignal::block() {
  const sigset_t set = stop_signals();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

StopOnSignal::StopOnSignal(std::function<void()> stop) {
  block();
  thread_ = std::thread([this, stop = std::move(stop)] {
    const sigset_t set = stop_signals();
    int signals = 0;
    while (!done_) {
      const timespec tenth{0, 100'000'000};
      if (::sigtimedwait(&set, nullptr, &tenth) < 0) continue;
      if (++signals == 3) std::_Exit(1);
      stop();
    }
  });
}

StopOnSignal::~StopOnSignal() {
  done_ = true;
  thread_.join();
}

}  // namespace kvl::tools
