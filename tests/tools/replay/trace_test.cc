// Traces: both file forms, their errors by line, and the built-in workload.
#include "tools/replay/trace.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <map>

namespace kvl::replay {
namespace {

class TraceFile : public ::testing::Test {
 protected:
  Result<Trace> load(const std::string& text, std::uint64_t limit = 0) {
    path_ = ::testing::TempDir() + "kvlane_trace_" + std::to_string(::getpid());
    std::ofstream(path_) << text;
    return load_trace(path_, limit, &error_);
  }
  ~TraceFile() override { ::unlink(path_.c_str()); }
  std::string path_, error_;
};

TEST_F(TraceFile, ReadsMooncakeRowsByArrival) {
  const auto trace = load(
      "{\"timestamp\": 5000, \"input_length\": 600, \"output_length\": 3, \"hash_ids\": [1, 2]}\n"
      "{\"timestamp\": 3000, \"input_length\": 512, \"output_length\": 9, \"hash_ids\": [1]}\n");
  ASSERT_TRUE(trace.ok()) << error_;
  ASSERT_EQ(trace->rows.size(), 2U);
  EXPECT_EQ(trace->rows[0].input_tokens, 512U);
  EXPECT_EQ(trace->rows[0].at_s, 0);
  EXPECT_EQ(trace->rows[1].at_s, 2);
  EXPECT_EQ(trace->rows[1].block_ids, (std::vector<std::uint64_t>{1, 2}));
}

TEST_F(TraceFile, ReadsAzureRowsAsUniqueAlsoWithoutALastNewline) {
  const auto trace = load(
      "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n"
      "2023-11-16 18:17:04.0319600,3180,8");
  ASSERT_TRUE(trace.ok()) << error_;
  ASSERT_EQ(trace->rows.size(), 2U);
  EXPECT_NEAR(trace->rows[1].at_s, 0.052, 1e-5);
  EXPECT_EQ(trace->rows[0].block_ids.size(), 10U);
  EXPECT_NE(trace->rows[0].block_ids[0], trace->rows[1].block_ids[0]);
}

TEST_F(TraceFile, SaysWhichLineIsWrong) {
  for (const char* bad :
       {"nonsense", "{\"timestamp\": 1}",
        "{\"timestamp\": 1, \"input_length\": 0, \"output_length\": 1, \"hash_ids\": []}",
        "{\"timestamp\": 1, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1]}",
        "{\"timestamp\": 1, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [\"x\"]}",
        "{\"timestamp\": 1, \"input_length\": 99999999999, \"output_length\": 1, \"hash_ids\": "
        "[1]}"}) {
    const auto trace =
        load("{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 1, \"hash_ids\": [1]}\n" +
             std::string(bad) + "\n");
    EXPECT_EQ(trace.code(), Code::invalid_argument) << bad;
    EXPECT_NE(error_.find("line 2"), std::string::npos) << error_;
  }
  EXPECT_EQ(load("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n").code(),
            Code::invalid_argument);
  EXPECT_EQ(load("").code(), Code::invalid_argument);
  EXPECT_EQ(load_trace("/nonexistent/trace", 0, &error_).code(), Code::not_found);
}

TEST_F(TraceFile, LimitTakesTheFirstRows) {
  std::string text;
  for (int i = 0; i < 10; ++i) {
    text += "{\"timestamp\": " + std::to_string(i) +
            ", \"input_length\": 5, \"output_length\": 1, \"hash_ids\": [1]}\n";
  }
  EXPECT_EQ(load(text, 3)->rows.size(), 3U);
}

TEST(Workload, IsSeededAndItsIdsAreAPrefixChain) {
  const Trace a = make_workload({.requests = 200, .seed = 7});
  const Trace b = make_workload({.requests = 200, .seed = 7});
  const Trace c = make_workload({.requests = 200, .seed = 8});
  ASSERT_EQ(a.rows.size(), 200U);
  EXPECT_EQ(a.rows[150].block_ids, b.rows[150].block_ids);
  EXPECT_NE(a.rows[150].block_ids, c.rows[150].block_ids);
  std::map<std::uint64_t, std::uint64_t> parent;
  std::uint64_t shared = 0;
  for (const TraceRow& row : a.rows) {
    EXPECT_EQ(row.block_ids.size(), (row.input_tokens + a.block_tokens - 1) / a.block_tokens);
    std::uint64_t before = 0;
    for (const std::uint64_t id : row.block_ids) {
      const auto [entry, fresh] = parent.emplace(id, before);
      EXPECT_EQ(entry->second, before);
      shared += !fresh;
      before = id;
    }
  }
  EXPECT_GT(shared, 0U);
}

}  // namespace
}  // namespace kvl::replay
