// docs/failures.md, the table of failures and kvl/status.h say the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "kvl/failure.h"

namespace kvl {
namespace {

std::string read(const std::string& path) {
  std::ifstream file(std::string(KVL_SOURCE_DIR) + "/" + path);
  EXPECT_TRUE(file.is_open()) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// As the page shows it.
std::string row_of(const Failure& failure) {
  std::string counters(failure.counters);
  for (std::size_t at = 0; (at = counters.find(", ", at)) != std::string::npos; at += 5) {
    counters.replace(at, 2, "`, `");
  }
  std::ostringstream row;
  row << "| `" << to_string(failure.code) << "` | " << failure.meaning << " | " << failure.caller
      << " | " << failure.remedy << " | `" << counters << "` |\n";
  return row.str();
}

TEST(Failures, EveryCodeOfTheHeaderHasARow) {
  const std::string header = read("transport/include/kvl/status.h");
  const std::regex entry(R"(\n  ([a-z_]+) = (\d+),)");
  std::size_t codes = 0;
  for (std::sregex_iterator found(header.begin(), header.end(), entry), end; found != end;
       ++found) {
    const auto code = static_cast<Code>(std::stoi((*found)[2]));
    EXPECT_EQ(to_string(code), (*found)[1].str());
    if (code == Code::ok) continue;
    ASSERT_LT(codes, failures().size()) << "a code without a row: " << (*found)[1];
    EXPECT_EQ(failures()[codes].code, code);
    EXPECT_FALSE(remedy(code).empty());
    ++codes;
  }
  EXPECT_EQ(codes, failures().size());
  EXPECT_GE(codes, 11U) << "the header was not understood";
}

TEST(Failures, ThePageShowsTheTable) {
  const std::string page = read("docs/failures.md");
  for (const Failure& failure : failures())
    EXPECT_THAT(page, ::testing::HasSubstr(row_of(failure)));
  std::size_t rows = 0;
  const std::string table = page.substr(0, page.find("\n## "));
  for (std::size_t at = 0; (at = table.find("\n| `", at)) != std::string::npos; ++at) ++rows;
  EXPECT_EQ(rows, failures().size());
}

// A counter that the page promises is one that the product exposes.
TEST(Failures, TheCountersExist) {
  std::string sources;
  for (const char* path :
       {"kvcache/handoff/metrics.cc", "kvcache/handoff/integrity.cc", "transport/core/engine.cc",
        "transport/core/engine_impl.h", "transport/core/refusals.cc", "kvcache/handoff/core.h",
        "transport/tcp/tcp_link.cc", "transport/shm/shm_link.cc"}) {
    sources += read(path);
  }
  std::set<std::string> names;
  for (const Failure& failure : failures()) {
    std::istringstream words{std::string(failure.counters)};
    for (std::string word; std::getline(words >> std::ws, word, ',');) names.insert(word);
  }
  EXPECT_GT(names.size(), 5U);
  for (const std::string& name : names) {
    EXPECT_THAT(sources, ::testing::HasSubstr("\"" + name + "\""));
  }
}

TEST(Failures, UnknownCodesHaveARemedy) { EXPECT_NE(remedy(static_cast<Code>(200)), ""); }

}  // namespace
}  // namespace kvl
