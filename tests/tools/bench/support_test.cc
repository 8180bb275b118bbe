// Statistics, output and the baselines that need no second program.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "bench/support/futex_pingpong.h"
#include "bench/support/output.h"
#include "bench/support/process_vm_baseline.h"
#include "bench/support/stats.h"

namespace kvl::bench {
namespace {

TEST(Percentile, IsTheNearestRank) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  EXPECT_EQ(percentile(values, 0.5), 50);
  EXPECT_EQ(percentile(values, 0.99), 99);
  EXPECT_EQ(percentile(values, 0), 1);
  EXPECT_EQ(percentile(values, 1), 100);
  EXPECT_EQ(median(values), 50.5);
  EXPECT_TRUE(std::isnan(percentile({}, 0.5)));
}

TEST(PairedRatio, DividesDriftOutAndCoversTheTruth) {
  SplitMix random(5);
  std::vector<double> a, b;
  for (int i = 0; i < 40; ++i) {
    const double drift = 1 + static_cast<double>(random.below(1000)) / 1000;  // up to 2x
    const double noise = 0.95 + static_cast<double>(random.below(100)) / 1000;
    a.push_back(1.3 * drift * noise);
    b.push_back(drift);
  }
  const Ratio ratio = paired_ratio(a, b);
  EXPECT_LT(ratio.low, 1.3);
  EXPECT_GT(ratio.high, 1.3);
  EXPECT_LT(ratio.high - ratio.low, 0.1);
  EXPECT_TRUE(ratio.distinct());
  EXPECT_FALSE(paired_ratio(b, b).distinct());
  EXPECT_EQ(paired_ratio(a, b).low, ratio.low);  // reproducible
  EXPECT_TRUE(std::isnan(paired_ratio({}, {}).value));
  EXPECT_FALSE(paired_ratio(std::vector<double>{2}, std::vector<double>{1}).distinct());
}

TEST(Output, EscapesAndMarksAbsence) {
  Row row;
  row.set("text", "a\"b\\\n").set("absent", Value{}).set("nan", std::nan("")).set("n", Value{3.25});
  row.set("n", Value{std::int64_t{-7}}).set("flag", Value{true});
  EXPECT_EQ(json(row),
            R"({"text": "a\"b\\\u000a", "absent": null, "nan": null, "n": -7, "flag": true})");
  EXPECT_EQ(csv_cell(Value(std::string("a,\"b\""))), "\"a,\"\"b\"\"\"");
  EXPECT_EQ(csv_cell(Value{}), "");
  EXPECT_EQ(row.number("n"), -7);
  EXPECT_TRUE(std::isnan(row.number("text")));
  EXPECT_EQ(bytes_text(4096), "4 KiB");
  EXPECT_EQ(bytes_text(1000), "1000 B");
}

std::string written(Format format) {
  char* text = nullptr;
  std::size_t bytes = 0;
  std::FILE* const out = ::open_memstream(&text, &bytes);
  Report report(out, format, {{"name", "name"}, {"x", "x"}});
  report.add(Row().set("name", "first").set("x", Value{1.5}).set("hidden", Value{2.0}));
  report.add(Row().set("x", Value{2.5}).set("name", "second"));
  report.note("done");
  std::fclose(out);
  std::string result(text, bytes);
  std::free(text);  // NOLINT: open_memstream's contract
  return result;
}

TEST(Output, WritesTheThreeFormats) {
  EXPECT_EQ(written(Format::csv), "name,x,hidden\nfirst,1.5,2\nsecond,2.5,\n");
  EXPECT_EQ(
      written(Format::json),
      "{\"name\": \"first\", \"x\": 1.5, \"hidden\": 2}\n{\"x\": 2.5, \"name\": \"second\"}\n");
  EXPECT_EQ(written(Format::text),
            "      name         x\n     first      1.50\n    second      2.50\ndone\n");
}

TEST(FutexPingPong, AnswersEveryTurnAndEnds) {
  auto asker = FutexPingPong::create();
  ASSERT_TRUE(asker.ok()) << asker.status().to_string();
  auto answerer = FutexPingPong::attach((*asker)->path());
  ASSERT_TRUE(answerer.ok()) << answerer.status().to_string();
  Status answered;
  std::thread thread([&] { answered = (*answerer)->answer(5, 10'000); });
  const auto samples = (*asker)->ask(500, 4096, 5, 10'000);
  (*asker)->stop();
  thread.join();
  ASSERT_TRUE(samples.ok()) << samples.status().to_string();
  EXPECT_EQ(samples->size(), 500U);
  EXPECT_TRUE(answered.ok()) << answered.to_string();
}

TEST(FutexPingPong, GivesUpWhenNobodyAnswers) {
  auto asker = FutexPingPong::create();
  ASSERT_TRUE(asker.ok());
  EXPECT_EQ((*asker)->ask(1, 64, 0, 5).code(), Code::timed_out);
  const auto lonely = FutexPingPong::create();
  ASSERT_TRUE(lonely.ok());
  EXPECT_EQ((*lonely)->answer(0, 5).code(), Code::timed_out);
  EXPECT_EQ(FutexPingPong::attach("/nonexistent").code(), Code::not_found);
  EXPECT_EQ(FutexPingPong::attach("/dev/null").code(), Code::invalid_argument);
}

TEST(ProcessVm, MovesRunsAndNamesErrors) {
  std::vector<std::byte> local(8192), remote(8192);
  for (std::size_t i = 0; i < local.size(); ++i) local[i] = static_cast<std::byte>(i * 7);
  std::vector<PageOp> ops;
  for (std::uint64_t i = 0; i < 40; ++i) {  // 1,600 pieces: more than one call
    ops.push_back({.local_offset = i * 200,
                   .remote_offset = (39 - i) * 200,
                   .bytes = 3,
                   .count = 40,
                   .local_stride = 5,
                   .remote_stride = 4});
  }
  const ForeignProcess self{::getpid(), reinterpret_cast<std::uint64_t>(remote.data())};
  const Status status = process_vm_ops(self, local.data(), ops, Direction::write);
  if (status.code() == Code::permission) GTEST_SKIP() << "the kernel forbids process_vm_writev";
  ASSERT_TRUE(status.ok()) << status.to_string();
  for (const PageOp& op : ops) {
    for (std::uint64_t i = 0; i < op.count; ++i) {
      for (std::uint64_t b = 0; b < op.bytes; ++b) {
        ASSERT_EQ(remote[op.remote_offset + i * op.remote_stride + b],
                  local[op.local_offset + i * op.local_stride + b]);
      }
    }
  }
  const ForeignProcess nobody{1 << 22, self.base};
  EXPECT_EQ(process_vm_ops(nobody, local.data(), ops, Direction::read).code(), Code::peer_lost);
}

}  // namespace
}  // namespace kvl::bench
