// kvlane bench, info and doctor as a user runs them: keys, exit status, clear errors, clean ends.
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <string>
#include <vector>

#include "tests/tools/bench/program.h"

namespace kvl {
namespace {

using test::json_field;
using test::json_number;
using test::Program;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// The children of a process, by the kernel's list.
std::vector<pid_t> children_of(pid_t pid) {
  const std::string id = std::to_string(pid);
  std::ifstream file("/proc/" + id + "/task/" + id + "/children");
  std::vector<pid_t> children;
  for (pid_t child = 0; file >> child;) children.push_back(child);
  return children;
}

// Until `condition`, ten seconds at most.
template <typename Condition>
bool eventually(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::poll(nullptr, 0, 5);
  }
  return true;
}

class BenchRow : public testing::TestWithParam<const char*> {};

TEST_P(BenchRow, HasItsKeysAndNoWrongByte) {
  const std::string transport = GetParam();
  Program bench("bench --transport " + transport +
                " --op write,read --pages 64 --page-bytes 4k,64k --arena-bytes 8m --seconds 0.05"
                " --verify --json");
  ASSERT_EQ(bench.wait(), 0) << bench.errors;
  const auto rows = lines_of(bench.output);
  ASSERT_EQ(rows.size(), 4U) << bench.output;
  for (const std::string& row : rows) {
    for (const char* key : {"transport",       "op",
                            "page_bytes",      "pages",
                            "lanes",           "congestion",
                            "gb_per_s",        "p50_us",
                            "p90_us",          "p99_us",
                            "p999_us",         "mops_per_s",
                            "cpu_s_per_gb",    "memcpy_gb_per_s",
                            "socket_gb_per_s", "socket_cpu_s_per_gb",
                            "socket_p50_us",   "wrong_bytes",
                            "register_ms",     "connect_ms",
                            "first_ms"}) {
      EXPECT_NE(json_field(row, key), "") << key << " in " << row;
      EXPECT_NE(json_field(row, key), "null") << key << " in " << row;
    }
    EXPECT_EQ(json_field(row, "transport"), transport);
    EXPECT_EQ(json_field(row, "wrong_bytes"), "0");
    EXPECT_EQ(json_field(row, "verified"), "full");
    EXPECT_GT(json_number(row, "gb_per_s"), 0);
    EXPECT_GT(json_number(row, "socket_gb_per_s"), 0);
  }
  EXPECT_EQ(json_field(rows[0], "op"), "write");
  EXPECT_EQ(json_field(rows[1], "op"), "read");
  EXPECT_EQ(json_field(rows[3], "page_bytes"), "65536");
}

TEST(BenchCongestion, TheRowNamesWhatIsInForceAlsoWithoutABaseline) {
  const std::string common =
      "bench --transport tcp --op write --pages 16 --arena-bytes 1m --seconds 0.02 --json"
      " --baselines none --tcp.congestion ";
  for (const std::string name : {"auto", "system", "reno"}) {
    Program bench(common + name);
    ASSERT_EQ(bench.wait(), 0) << bench.errors;
    const std::string used = json_field(bench.output, "congestion");
    EXPECT_NE(used, "");
    EXPECT_NE(used, name == "reno" ? "" : name);
    if (name == "auto") {
      EXPECT_EQ(used, "reno") << "between two processes of one host";
    }
  }
  Program none(common + "no_such_control");
  EXPECT_EQ(none.wait(), 1);
  EXPECT_EQ(none.output, "");
  EXPECT_NE(none.errors.find("tcp.congestion=no_such_control"), std::string::npos) << none.errors;
}

TEST_P(BenchRow, StridedForeignAndDeepRowsAreRight) {
  const std::string common = std::string("bench --transport ") + GetParam() +
                             " --op write,read --seconds 0.02 --arena-bytes 4m --verify --json ";
  for (const std::string row :
       {"--pages 200 --page-bytes 1000 --stride 1500 --run-pieces 7", "--foreign --pages 33",
        "--pages 50 --depth 4 --page-bytes 12345 --contiguous", "--pages 20 --progress caller",
        "--pages 100 --page-bytes 4k --remote-stride 8k --run-pieces 10 --no-notes"}) {
    Program bench(common + row);
    ASSERT_EQ(bench.wait(), 0) << row << ": " << bench.errors;
    for (const std::string& line : lines_of(bench.output)) {
      EXPECT_EQ(json_field(line, "wrong_bytes"), "0") << line;
    }
  }
}

TEST_P(BenchRow, SeesAByteThatIsWrong) {
  for (const char* op : {"write", "read"}) {
    Program bench(std::string("bench --pages 16 --arena-bytes 1m --seconds 0.02 --json"
                              " --baselines none --test-flip-byte --transport ") +
                  GetParam() + " --op " + op);
    EXPECT_EQ(bench.wait(), 1);
    EXPECT_EQ(json_field(bench.output, "wrong_bytes"), "1") << bench.output;
    EXPECT_NE(bench.errors.find("wrong bytes"), std::string::npos) << bench.errors;
  }
}

TEST_P(BenchRow, MeasuresLatency) {
  Program bench(std::string("bench --latency --seconds 0.05 --json --transport ") + GetParam());
  ASSERT_EQ(bench.wait(), 0) << bench.errors;
  const auto rows = lines_of(bench.output);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(json_field(rows[0], "progress"), "caller");
  EXPECT_EQ(json_field(rows[1], "progress"), "thread");
  for (const std::string& row : rows) {
    for (const char* key : {"p50_us", "p99_us", "socket_p50_us", "futex_p50_us"}) {
      EXPECT_GT(json_number(row, key), 0) << key << " in " << row;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, BenchRow, testing::Values("tcp", "shm"),
                         [](const auto& param) { return std::string(param.param); });

TEST(Bench, NamesWhatIsWrongWithItsFlags) {
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"--op erase", "--op"},
      {"--page-bytes 4q", "unknown suffix"},
      {"--page-bytes 4k,,8k", "--page-bytes"},
      {"--pages 0", "--pages"},
      {"--pages 4000000 --page-bytes 1m", "32 GiB"},
      {"--stride 100", "stride"},
      {"--run-pieces 5000", "--run-pieces"},
      {"--json --csv", "--csv"},
      {"--compare tcp,shm", "--peer"},
      {"--transport a:b:c:d", "--transport"},
      {"--suite nonsense", "--suite"},
      {"--seconds 0", "--seconds"},
      {"--baselines memcpy,teleport", "teleport"},
      {"--no-such-flag", "--no-such-flag"},
  };
  for (const auto& [flags, word] : wrong) {
    Program bench("bench " + flags);
    EXPECT_EQ(bench.wait(), 2) << flags;
    EXPECT_NE(bench.errors.find(word), std::string::npos) << flags << ": " << bench.errors;
    EXPECT_EQ(bench.output, "") << flags;
  }
}

TEST(Bench, SaysWhyATransportCannotBeUsed) {
  for (const char* flags : {"--transport carrier-pigeon", "--transport tcp::nosuchdevice",
                            "--tcp.lanes 1000", "--lanes x"}) {
    Program bench(std::string("bench --timeout-ms 3000 ") + flags);
    EXPECT_EQ(bench.wait(), 1) << flags;
    EXPECT_NE(bench.errors, "") << flags;
  }
  Program bench("bench --transport carrier-pigeon");
  EXPECT_EQ(bench.wait(), 1);
  EXPECT_NE(bench.errors.find("carrier-pigeon"), std::string::npos) << bench.errors;
}

TEST(Bench, WritesCsvAndText) {
  const std::string row = " --pages 16 --arena-bytes 1m --seconds 0.02 --baselines memcpy";
  Program csv("bench --csv" + row);
  ASSERT_EQ(csv.wait(), 0) << csv.errors;
  const auto lines = lines_of(csv.output);
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0].substr(0, 23), "transport,op,page_bytes");
  Program text("bench" + row);
  ASSERT_EQ(text.wait(), 0) << text.errors;
  EXPECT_NE(text.output.find("GB/s"), std::string::npos);
}

TEST(Bench, NoticesTheDeathOfItsOtherHalf) {
  Program bench("bench --seconds 60 --pages 64 --baselines none");
  ASSERT_TRUE(eventually([&] { return !children_of(bench.pid()).empty(); }));
  ::kill(children_of(bench.pid()).front(), SIGKILL);
  EXPECT_EQ(bench.wait(20), 1);
  EXPECT_NE(bench.errors, "");
}

TEST(Bench, CtrlCEndsBothProcesses) {
  Program bench("bench --seconds 60 --pages 64 --baselines none");
  ASSERT_TRUE(eventually([&] { return !children_of(bench.pid()).empty(); }));
  const pid_t child = children_of(bench.pid()).front();
  bench.signal(SIGINT);
  EXPECT_EQ(bench.wait(20), 1);
  EXPECT_TRUE(eventually([&] { return ::kill(child, 0) != 0; }));
}

TEST(Bench, ComparesTwoTransportsWithAServingSide) {
  Program server("bench --serve 127.0.0.1:0");
  const std::string address = server.read_line();
  ASSERT_NE(address.find("127.0.0.1:"), std::string::npos) << server.errors;
  Program bench("bench --peer " + address +
                " --compare tcp,shm --page-bytes 4k,16k --pages 64 --arena-bytes 2m"
                " --seconds 0.1 --prompt-tokens 1000 --verify --json");
  ASSERT_EQ(bench.wait(), 0) << bench.errors;
  const auto rows = lines_of(bench.output);
  ASSERT_EQ(rows.size(), 3U) << bench.output;
  for (const std::string& row : {rows[0], rows[1]}) {
    EXPECT_EQ(json_field(row, "first"), "tcp");
    EXPECT_EQ(json_field(row, "second"), "shm");
    EXPECT_GT(json_number(row, "ratio"), 0);
    EXPECT_LE(json_number(row, "ratio_low"), json_number(row, "ratio_high"));
    EXPECT_GT(json_number(row, "first_transfer_ms"), 0);
    EXPECT_NE(json_field(row, "verdict"), "");
    EXPECT_EQ(json_field(row, "wrong_bytes"), "0");
  }
  EXPECT_NE(json_field(rows[2], "final_verdict").find("llama-3.1-8b"), std::string::npos);
  // It serves the next one as well, and ends when asked to.
  Program doctor("doctor " + address + " --require tcp --json");
  EXPECT_EQ(doctor.wait(), 0) << doctor.errors;
  EXPECT_EQ(json_field(doctor.output, "transport"), "tcp");
  server.signal(SIGTERM);
  EXPECT_EQ(server.wait(20), 0);
}

TEST(Doctor, ChecksThisHostAndExplainsFailures) {
  Program json("doctor --json --listen 127.0.0.1:0");
  EXPECT_EQ(json.wait(), 0) << json.errors << json.output;
  const std::size_t checks = json.output.find("\"checks\": [");
  ASSERT_NE(checks, std::string::npos) << json.output;
  for (const char* name : {"listener", "fd_limit", "locked_memory", "ptrace_scope"}) {
    EXPECT_NE(json.output.find("\"name\": \"" + std::string(name) + "\"", checks),
              std::string::npos)
        << name;
  }
  // A limit that is low is named with what to do.
  Program few("doctor --listen 127.0.0.1:0", {"prlimit", "--nofile=512"});
  EXPECT_EQ(few.wait(), 0) << few.errors;
  EXPECT_NE(few.output.find("LimitNOFILE"), std::string::npos) << few.output;
  Program explained("doctor --explain corrupt");
  EXPECT_EQ(explained.wait(), 0) << explained.errors;
  EXPECT_NE(explained.output.find("kvlane_handoff_crc_mismatches_total"), std::string::npos);
  Program unknown("doctor --explain gremlins");
  EXPECT_EQ(unknown.wait(), 1);
  EXPECT_NE(unknown.errors.find("docs/failures.md"), std::string::npos) << unknown.errors;
}

TEST(Doctor, NamesTheTransportAndWhyNotABetterOne) {
  Program best("doctor --json");
  EXPECT_EQ(best.wait(), 0) << best.errors;
  EXPECT_EQ(json_field(best.output, "transport"), "shm") << best.output;
  Program tcp("doctor --require tcp");
  EXPECT_EQ(tcp.wait(), 0) << tcp.errors;
  EXPECT_NE(tcp.output.find("only tcp may be used"), std::string::npos) << tcp.output;
  Program none("doctor --require carrier-pigeon");
  EXPECT_EQ(none.wait(), 1);
  EXPECT_NE(none.errors.find("carrier-pigeon"), std::string::npos) << none.errors;
  Program nobody("doctor 127.0.0.1:1 --connect_timeout_ms 300");
  EXPECT_EQ(nobody.wait(), 1);
  Program garbage("doctor not-an-address");
  EXPECT_EQ(garbage.wait(), 1);
  EXPECT_NE(garbage.errors.find("not-an-address"), std::string::npos) << garbage.errors;
}

TEST(Info, ListsTransportsAndChangedSettings) {
  Program info("info --json --tcp.lanes 3");
  ASSERT_EQ(info.wait(), 0) << info.errors;
  for (const char* word : {"\"name\": \"tcp\"", "\"name\": \"shm\"", "\"tcp.lanes\"", "\"flag\"",
                           "\"congestion_controls\"", "\"io_uring\""}) {
    EXPECT_NE(info.output.find(word), std::string::npos) << word << " in " << info.output;
  }
  Program text("info");
  EXPECT_EQ(text.wait(), 0);
  EXPECT_NE(text.output.find("transports, best first"), std::string::npos);
  Program metrics("info --metrics");
  EXPECT_EQ(metrics.wait(), 0) << metrics.errors;
  EXPECT_NE(metrics.output.find("# TYPE"), std::string::npos);
}

}  // namespace
}  // namespace kvl
