// The trace: what a line holds, what happens without room for one, and where a program stops. The
// trace is the process's own, so each case runs in a child.
#include "kvl/trace.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#include "kvl/log.h"

namespace kvl {
namespace {

// Runs `body` in a child; its exit status, or 128 + the signal that ended or stopped it.
template <typename Body>
int in_child(Body body) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    body();
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ::waitpid(pid, &status, WUNTRACED);
  if (WIFSTOPPED(status)) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return 128 + WSTOPSIG(status);
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string temporary(const char* name) {
  return ::testing::TempDir() + "kvl_trace_" + std::to_string(::getpid()) + name;
}

std::string content(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

TEST(Trace, IsOffUntilOpened) {
  EXPECT_EQ(in_child([] {
              EXPECT_FALSE(tracing());
              trace({.stage = Stage::queued, .room = 7});
              EXPECT_TRUE(open_trace({}, "test").ok());
              EXPECT_FALSE(tracing());
            }),
            0);
}

TEST(Trace, WritesALineForAStage) {
  const std::string path = temporary("lines");
  EXPECT_EQ(in_child([&] {
              ASSERT_TRUE(open_trace({.file = path}, "test").ok());
              trace({.stage = Stage::failed,
                     .room = 1ULL << 62,
                     .rid = "a\"b\\c\nd\x01",
                     .side = "decode",
                     .rank = 3,
                     .layer = 5,
                     .layers = 2,
                     .code = Code::peer_lost,
                     .what = "why"});
              trace({.stage = Stage::received, .room = 2, .before = 1, .side = "router"});
            }),
            0);
  const std::string text = content(path);
  EXPECT_NE(text.find(R"("process":"test","stage":"failed","room":4611686018427387904,)"
                      R"("rid":"a\"b\\c\u000ad\u0001","side":"decode","rank":3,"layer":5,)"
                      R"("layers":2,"code":"peer_lost","what":"why"})"
                      "\n{"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find(R"("stage":"received","room":2,"before":1,"side":"router"})"
                      "\n"),
            std::string::npos)
      << text;
  std::remove(path.c_str());
}

// Bytes of others: a text is cut to 200 bytes, at the beginning of a character.
TEST(Trace, BoundsWhatOthersWrote) {
  const std::string path = temporary("bounds");
  EXPECT_EQ(in_child([&] {
              ASSERT_TRUE(open_trace({.file = path}, "test").ok());
              const std::string wide = std::string(199, 'x') + "\xc3\xa9";
              const std::string escaped(100'000, '\x01');
              trace({.stage = Stage::queued, .rid = wide, .what = escaped});
            }),
            0);
  const std::string text = content(path);
  EXPECT_NE(text.find("\"rid\":\"" + std::string(199, 'x') + "\","), std::string::npos) << text;
  EXPECT_LT(text.size(), 4096U);
  EXPECT_TRUE(text.ends_with("\"}\n"));
  std::remove(path.c_str());
}

TEST(Trace, LinesOfThreadsAndProcessesDoNotMix) {
  const std::string path = temporary("mix");
  constexpr int kLines = 500;
  EXPECT_EQ(in_child([&] {
              ASSERT_TRUE(open_trace({.file = path}, "test").ok());
              const pid_t other = ::fork();
              std::vector<std::thread> threads;
              for (int t = 0; t < 2; ++t) {
                threads.emplace_back([] {
                  const std::string long_text(200, 'y');
                  for (int i = 0; i < kLines; ++i) trace({.rid = long_text, .what = long_text});
                });
              }
              for (std::thread& thread : threads) thread.join();
              if (other == 0) ::_exit(0);
              int status = 1;
              ::waitpid(other, &status, 0);
              EXPECT_EQ(status, 0);
            }),
            0);
  std::ifstream in(path);
  int count = 0;
  for (std::string line; std::getline(in, line); ++count) {
    ASSERT_TRUE(line.starts_with("{\"wall_ns\":") && line.ends_with("\"}")) << line;
  }
  EXPECT_EQ(count, 4 * kLines);
  std::remove(path.c_str());
}

TEST(Trace, AFullDiskCostsLinesAndNothingElse) {
  EXPECT_EQ(in_child([] {
              std::vector<std::string> logged;
              set_log_sink([&](LogLevel, std::string_view line) { logged.emplace_back(line); });
              ASSERT_TRUE(open_trace({.file = "/dev/full"}, "test").ok());
              for (int i = 0; i < 3; ++i) trace({.stage = Stage::queued});
              EXPECT_EQ(trace_lines_dropped(), 3U);
              ASSERT_EQ(logged.size(), 1U);
              EXPECT_NE(logged[0].find("No space left"), std::string::npos) << logged[0];
            }),
            0);
}

TEST(Trace, ALimitOnFilesIsAFullDiskToo) {
  const std::string path = temporary("limit");
  EXPECT_EQ(in_child([&] {
              set_log_sink([](LogLevel, std::string_view) {});
              const rlimit limit{300, 300};
              ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
              ASSERT_TRUE(open_trace({.file = path}, "test").ok());
              for (int i = 0; i < 10; ++i) trace({.stage = Stage::queued});
              EXPECT_GT(trace_lines_dropped(), 0U);
            }),
            0);
  EXPECT_EQ(content(path).size(), 300U);
  std::remove(path.c_str());
}

TEST(Trace, AFileThatCannotBeOpenedIsNamed) {
  EXPECT_EQ(in_child([] {
              std::string error;
              EXPECT_EQ(open_trace({.file = "/no/such/folder/f"}, "test", &error).code(),
                        Code::unavailable);
              EXPECT_EQ(error, "trace.file '/no/such/folder/f': No such file or directory");
            }),
            0);
}

TEST(StopAt, IsRefusedUnlessTestingIsEnabled) {
  std::string error;
  EXPECT_EQ(open_trace({.stop_at = "queued:kill"}, "test", &error).code(), Code::invalid_argument);
  EXPECT_NE(error.find("testing.enabled"), std::string::npos) << error;
  EXPECT_FALSE(tracing());
}

TEST(StopAt, WrongWordsAreNamed) {
  const auto says = [](const char* text) {
    std::string error;
    EXPECT_EQ(open_trace({.testing = true, .stop_at = text}, "test", &error).code(),
              Code::invalid_argument)
        << text;
    EXPECT_FALSE(tracing()) << text;
    return error;
  };
  EXPECT_NE(says("nowhere:kill").find("prefill_started"), std::string::npos);
  EXPECT_NE(says("queued:dance").find("stop, kill, exit, hang"), std::string::npos);
  EXPECT_NE(says("queued").find("action"), std::string::npos);
  for (const char* const text : {"queued:0:kill", "queued:x:kill", "queued::kill", "queued:-1:kill",
                                 "queued:99999999999999999999:kill"}) {
    EXPECT_NE(says(text).find("N counts from 1"), std::string::npos) << text;
  }
}

int stopped_by(const char* stop_at, int stages) {
  return in_child([&] {
    set_log_sink([](LogLevel, std::string_view) {});
    ASSERT_TRUE(open_trace({.testing = true, .stop_at = stop_at}, "test").ok());
    for (int i = 0; i < stages; ++i) {
      trace({.stage = Stage::queued});
      trace({.stage = Stage::layer});
    }
  });
}

TEST(StopAt, ActsAtTheNthTimeOnly) {
  EXPECT_EQ(stopped_by("layer:3:kill", 2), 0);
  EXPECT_EQ(stopped_by("layer:3:kill", 3), 128 + SIGKILL);
  EXPECT_EQ(stopped_by("layer:stop", 1), 128 + SIGSTOP);
  EXPECT_EQ(stopped_by("queued:2:exit", 2), 86);
  EXPECT_EQ(stopped_by("committed:kill", 5), 0);
}

}  // namespace
}  // namespace kvl
