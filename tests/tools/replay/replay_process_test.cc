// kvlane replay as scripts use it: the fields of its last line, its exit status, and what it says
// of options that are wrong.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "tests/tools/bench/program.h"

namespace kvl {
namespace {

using test::json_field;
using test::json_number;
using test::Program;

const std::string kSmall = "--limit 4 --time-scale 100 ";

// The last line, with a blank behind each colon, as json_field() wants it.
std::string last_line(const std::string& output) {
  std::string line = output.substr(0, output.find_last_not_of('\n') + 1);
  line = line.substr(line.find_last_of('\n') + 1);
  for (std::size_t at = 0; (at = line.find("\":", at)) != std::string::npos; at += 3) {
    line.insert(at + 2, " ");
  }
  return line;
}

std::string file(const std::string& name, const std::string& text) {
  const std::string path =
      ::testing::TempDir() + "kvlane_replay_" + std::to_string(::getpid()) + "_" + name;
  std::ofstream(path) << text;
  return path;
}

void expect_right(const std::string& line, double requests) {
  for (const char* key :
       {"requests", "ok", "failed", "pages_moved", "pages_wrong", "bytes_moved", "gb_per_s",
        "ttft_p50_ms", "ttft_p99_ms", "transfer_p50_ms", "transfer_p99_ms"}) {
    EXPECT_NE(json_field(line, key), "") << key << " in " << line;
  }
  EXPECT_EQ(json_number(line, "requests"), requests) << line;
  EXPECT_EQ(json_number(line, "ok"), requests) << line;
  EXPECT_EQ(json_number(line, "failed"), 0) << line;
  EXPECT_EQ(json_number(line, "pages_wrong"), 0) << line;
  EXPECT_GT(json_number(line, "pages_moved"), 0) << line;
  EXPECT_GT(json_number(line, "bytes_moved"), 0) << line;
  EXPECT_GT(json_number(line, "ttft_p50_ms"), 0) << line;
  EXPECT_GT(json_number(line, "transfer_p50_ms"), 0) << line;
}

TEST(Replay, TheBuiltInWorkloadAndItsPage) {
  const std::string page = file("page.html", "");
  Program replay("replay " + kSmall + "--json --html " + page);
  ASSERT_EQ(replay.wait(120), 0) << replay.errors;
  expect_right(last_line(replay.output), 4);
  std::ifstream in(page);
  const std::string html{std::istreambuf_iterator<char>(in), {}};
  EXPECT_NE(html.find("<svg"), std::string::npos) << "a page with plots";
}

TEST(Replay, MooncakeRowsByPullOverTcpShareTheirPrefix) {
  const std::string trace =
      file("mooncake.jsonl",
           "{\"timestamp\":0,\"input_length\":1500,\"output_length\":2,\"hash_ids\":[1,2,3]}\n"
           "{\"timestamp\":9000,\"input_length\":1300,\"output_length\":2,\"hash_ids\":[1,2,9]}\n");
  Program replay(
      "replay --json --prefill 1 --decode 1 --mode pull --transport tcp --time-scale 10"
      " --trace " +
      trace);
  ASSERT_EQ(replay.wait(120), 0) << replay.errors;
  const std::string line = last_line(replay.output);
  expect_right(line, 2);
  EXPECT_NE(line.find("tcp"), std::string::npos) << line;
}

TEST(Replay, AzureRowsUpToTheLimit) {
  const std::string trace = file("azure.csv",
                                 "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                                 "2023-11-16 18:17:03.9799600,480,3\n"
                                 "2023-11-16 18:17:04.0319600,318,2\n"
                                 "2023-11-16 18:17:04.0783600,110,2\n");
  Program replay("replay --json --limit 2 --trace " + trace);
  ASSERT_EQ(replay.wait(120), 0) << replay.errors;
  expect_right(last_line(replay.output), 2);
}

TEST(Replay, AFlippedBitIsAWrongPageAndExitStatus1) {
  Program replay("replay --json --damage-received " + kSmall);
  EXPECT_EQ(replay.wait(120), 1) << replay.errors;
  EXPECT_GT(json_number(last_line(replay.output), "pages_wrong"), 0) << replay.output;
}

TEST(Replay, CtrlCEndsItAndWhatItStarted) {
  Program replay("replay --json --limit 100000");
  const std::string group = std::to_string(replay.pid());
  // It says so once the fleet is up and requests flow.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  std::ifstream children;
  std::string all;
  while (all.size() < 20 && std::chrono::steady_clock::now() < deadline) {
    children.close();
    children.clear();
    children.open("/proc/" + group + "/task/" + group + "/children");
    std::getline(children, all);
    ::poll(nullptr, 0, 20);
  }
  replay.signal(SIGINT);
  EXPECT_EQ(replay.wait(60), 1);
  std::istringstream pids(all);
  for (int pid = 0; pids >> pid;) {
    EXPECT_EQ(::kill(pid, 0), -1) << "process " << pid << " is still there";
  }
}

TEST(Replay, WrongOptionsAreRefusedBeforeAnythingStarts) {
  for (const char* wrong :
       {"--limit -1", "--limit 0", "--limit 1000000000000", "--time-scale nan", "--time-scale 0",
        "--time-scale -1", "--mode sideways", "--decode-pp 100", "--page-tokens 0",
        "--pool-bytes 1000", "--prefill 0", "--model nope", "--trace /nonexistent",
        "--html /nonexistent/x.html"}) {
    Program replay(std::string("replay --json ") + wrong);
    EXPECT_GT(replay.wait(20), 0) << wrong;
    EXPECT_EQ(replay.output, "") << wrong;
    EXPECT_NE(replay.errors, "") << wrong;
    EXPECT_EQ(replay.errors.find("workers, every byte"), std::string::npos) << wrong;
  }
}

}  // namespace
}  // namespace kvl
