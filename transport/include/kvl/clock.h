// Time as a parameter, so that tests and the simulator own it.
#pragma once

#include <time.h>

#include <cstdint>

namespace kvl {

// Monotonic nanoseconds. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual std::int64_t now_ns() const = 0;
};

class SteadyClock final : public Clock {
 public:
  std::int64_t now_ns() const override {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
  }
};

}  // namespace kvl
