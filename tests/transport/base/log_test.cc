// The log: levels, one line per event whatever its values hold, and how many lines there may be.
#include "kvl/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kvl/clock.h"
#include "tests/support/log_guard.h"
#include "transport/base/log_limiter.h"

namespace kvl {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::int64_t kSecondNs = 1'000'000'000;

// What is logged while it lives.
struct Capture {
  Capture() {
    set_log_sink([this](LogLevel, std::string_view line) { lines.emplace_back(line); });
  }
  ~Capture() {
    set_log_levels("warning");
    test::install_log_guard();
  }
  std::vector<std::string> lines;
};

TEST(LogLimiter, TenAtOnceThenOneASecondAndTheRestIsCounted) {
  LogLimiter limiter;
  std::int64_t now = 7 * kSecondNs;
  for (std::uint32_t i = 0; i < LogLimiter::kBurst; ++i) {
    EXPECT_EQ(limiter.admit("a.b", "", now), 0U);
  }
  for (int i = 0; i < 5; ++i) EXPECT_EQ(limiter.admit("a.b", "", now), std::nullopt);
  now += kSecondNs - 1;
  EXPECT_EQ(limiter.admit("a.b", "", now), std::nullopt);
  now += 1;
  EXPECT_EQ(limiter.admit("a.b", "", now), 6U);
  EXPECT_EQ(limiter.admit("a.b", "", now), std::nullopt);
  now += kSecondNs;
  EXPECT_EQ(limiter.admit("a.b", "", now), 1U);
  // A long silence gives back ten, and not more.
  now += 3600 * kSecondNs;
  int written = 0;
  while (limiter.admit("a.b", "", now)) ++written;
  EXPECT_EQ(written, 10);
}

TEST(LogLimiter, EventsAndCausesDoNotHideEachOther) {
  LogLimiter limiter;
  while (limiter.admit("a.b", "timed_out", 1)) {
  }
  EXPECT_EQ(limiter.admit("a.b", "wrong_secret", 1), 0U);
  EXPECT_EQ(limiter.admit("a.c", "timed_out", 1), 0U);
  EXPECT_EQ(limiter.admit("a.b", "", 1), 0U);
}

TEST(LogLimiter, ManyKindsShareABucketInTheEnd) {
  LogLimiter limiter;
  std::size_t written = 0;
  for (int i = 0; i < 10'000; ++i) {
    written += limiter.admit("a.b", std::to_string(i), 1).has_value() ? 1U : 0U;
  }
  EXPECT_EQ(written, LogLimiter::kKindsMax + LogLimiter::kBurst);
  EXPECT_NE(limiter.admit("a.b", "0", 1), std::nullopt) << "a kind that has its bucket keeps it";
}

TEST(Log, AFloodLeavesTenLinesOfEachCauseAndDebugAll) {
  Capture capture;
  set_log_levels("debug");
  for (int i = 0; i < 1000; ++i) log(LogLevel::warning, "test.flood", {{"cause", "one"}});
  // A slow machine may take seconds over it, and each gives one line back.
  EXPECT_GE(capture.lines.size(), 10U);
  EXPECT_LT(capture.lines.size(), 1000U);
  EXPECT_THAT(capture.lines.front(), Not(HasSubstr("suppressed")));
  capture.lines.clear();
  log(LogLevel::warning, "test.flood", {{"cause", "two"}});
  log(LogLevel::warning, "test.flood", {{"code", "three"}});
  EXPECT_EQ(capture.lines.size(), 2U);
  capture.lines.clear();
  for (int i = 0; i < 1000; ++i) log(LogLevel::debug, "test.detail");
  EXPECT_EQ(capture.lines.size(), 1000U);
}

TEST(Log, TheNextLineSaysHowManyWereNotWritten) {
  Capture capture;
  const SteadyClock clock;
  const std::int64_t end_ns = clock.now_ns() + 30 * kSecondNs;
  const auto told = [&] { return capture.lines.back().find(" suppressed=") != std::string::npos; };
  log(LogLevel::warning, "test.flood");
  while (!told() && clock.now_ns() < end_ns) log(LogLevel::warning, "test.flood");
  EXPECT_TRUE(told());
}

TEST(Log, OneLineWhateverTheValuesHold) {
  Capture capture;
  log(LogLevel::warning, "test.words",
      {{"peer", "a\nb\x1b[2J\""}, {"empty", ""}, {"plain", "x"}, {"number", 7}});
  ASSERT_EQ(capture.lines.size(), 1U);
  EXPECT_EQ(capture.lines[0], R"(test.words peer="a b [2J\"" empty="" plain=x number=7)");
}

TEST(Log, LevelsBySubsystem) {
  Capture capture;
  ASSERT_TRUE(set_log_levels("error,loud=info"));
  log(LogLevel::warning, "quiet.event");
  log(LogLevel::info, "loud.event");
  EXPECT_EQ(capture.lines, std::vector<std::string>{"loud.event"});
  EXPECT_FALSE(set_log_levels("shouting"));
}

}  // namespace
}  // namespace kvl
