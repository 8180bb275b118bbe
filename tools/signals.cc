// A thread that waits for signals.
#include "tools/signals.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <utility>

namespace kvl::tools {
namespace {

sigset_t awaited_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGINT);
  ::sigaddset(&set, SIGTERM);
  ::sigaddset(&set, SIGHUP);
  return set;
}

}  // namespace

void StopOnSignal::block() {
  const sigset_t set = awaited_signals();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

StopOnSignal::StopOnSignal(std::function<void()> stop, std::function<void()> reload) {
  block();
  thread_ = std::thread([this, stop = std::move(stop), reload = std::move(reload)] {
    const sigset_t set = awaited_signals();
    int signals = 0;
    while (!done_) {
      const timespec tenth{0, 100'000'000};
      const int signal = ::sigtimedwait(&set, nullptr, &tenth);
      if (signal < 0) continue;
      // A terminal that goes away ends a program that has nothing to reload.
      if (signal == SIGHUP && reload) {
        reload();
        continue;
      }
      if (++signals == 3) std::_Exit(1);
      stop();
    }
  });
}

StopOnSignal::~StopOnSignal() {
  done_ = true;
  thread_.join();
}

void report_reload(const std::function<Status(std::string*)>& reload) {
  std::string why;
  const Status status = reload(&why);
  if (status.ok()) {
    std::fprintf(stderr, "kvlane: certificates were read anew\n");
  } else {
    std::fprintf(stderr, "kvlane: certificates stay as they are: %s\n", why.c_str());
  }
}

}  // namespace kvl::tools
