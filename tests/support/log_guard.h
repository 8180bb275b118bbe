// Turns log lines of level warning and above into test failures, unless the test expects them, or
// they tell of a loss that the test sees as an event.
#pragma once

#include <gtest/gtest.h>

#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/log.h"

namespace kvl::test {

// What the running test has said it expects; shared by the guard and ExpectLog.
struct LogExpectations {
  std::mutex mutex;
  std::vector<std::string> prefixes;  // event names (or their beginnings) that may be logged
};
inline LogExpectations& log_expectations() {
  static LogExpectations& instance = *new LogExpectations;
  return instance;
}

// While alive, events that begin with `event` may be logged at any level.
class ExpectLog {
 public:
  explicit ExpectLog(std::string event) {
    LogExpectations& e = log_expectations();
    const std::lock_guard<std::mutex> lock(e.mutex);
    e.prefixes.push_back(std::move(event));
  }
  ~ExpectLog() {
    LogExpectations& e = log_expectations();
    const std::lock_guard<std::mutex> lock(e.mutex);
    e.prefixes.pop_back();
  }
  ExpectLog(const ExpectLog&) = delete;
  ExpectLog& operator=(const ExpectLog&) = delete;
};

inline void install_log_guard() {
  set_log_sink([](LogLevel level, std::string_view line) {
    if (level < LogLevel::warning) return;
    constexpr std::string_view kSeen[] = {"peer.down ", "peer.unreachable ", "handoff.failed ",
                                          "router.request_failed ", "worker.request_failed "};
    for (const std::string_view prefix : kSeen) {
      if (line.starts_with(prefix)) return;
    }
    LogExpectations& e = log_expectations();
    const std::lock_guard<std::mutex> lock(e.mutex);
    for (const std::string& prefix : e.prefixes) {
      if (line.substr(0, prefix.size()) == prefix) return;
    }
    ADD_FAILURE() << "unexpected log line: " << line;
  });
}

}  // namespace kvl::test
