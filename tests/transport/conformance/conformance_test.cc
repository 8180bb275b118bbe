// Every promise over every transport, plain and wrapped, as one thread, two threads, two processes;
// and the table that says so at the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <ostream>
#include <set>
#include <tuple>

#include "tests/transport/conformance/check.h"

namespace kvl::conformance {

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name(); }
void PrintTo(const Check& check, std::ostream* out) { *out << check.name; }

namespace {

// Bytes that never leave the host need no encryption; the simulated network has none, and what a
// NIC fetches from memory nobody can seal.
bool encrypts(const Variant& kind) {
  if (kind.transport == "sim" || kind.transport == "libfabric" || kind.transport == "verbs" ||
      kind.transport == "ucx") {
    return false;
  }
  const std::vector<Device> devices = make_transport_of(kind)->devices();
  return !devices.empty() &&
         (devices.front().caps & static_cast<std::uint32_t>(Cap::inter_node)) != 0;
}

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const Variant& kind : all_kinds()) {
    if (!missing_here(kind).empty() || nothing_applies(kind)) {  // once is enough to say so
      all.push_back(kind);
      continue;
    }
    const bool encrypted = encrypts(kind);
    for (const Mode mode : {Mode::one_thread, Mode::threads, Mode::processes}) {
      Variant variant = kind;
      variant.mode = mode;
      for (const bool wrapped : {false, true}) {
        variant.wrapped = wrapped;
        all.push_back(variant);
      }
      variant.wrapped = false;
      variant.encrypted = true;
      if (encrypted) all.push_back(variant);
    }
  }
  return all;
}

std::string label(const Variant& variant) {
  return variant.kind() + (variant.wrapped ? ", wrapped" : variant.encrypted ? ", encrypted" : "");
}

// What became of every promise, for the table.
class Table : public testing::Environment {
 public:
  enum class Verdict { pass, not_applicable, fail };
  void add(const Variant& variant, const Check& check, Verdict verdict, const std::string& reason) {
    const std::string row = label(variant);
    // Where one mode cannot apply another still proves it: n/a stands only if nothing else does.
    for (const int promise : check.promises) {
      auto [cell, first] = cells_[row].try_emplace(promise, verdict);
      if (first || cell->second == verdict) continue;
      if (verdict == Verdict::fail || cell->second == Verdict::not_applicable) {
        cell->second = cell->second == Verdict::fail ? Verdict::fail : verdict;
      }
    }
    if (verdict == Verdict::not_applicable) {
      reasons_.insert(variant.kind() + ": " +
                      (nothing_applies(variant) ? "every check"
                       : variant.transport == "sim" && variant.mode != Mode::one_thread
                           ? "threads, processes"
                       : variant.flavour == kFakeEfa && variant.mode == Mode::processes
                           ? "processes"
                           : std::string(check.name)) +
                      ": " + reason);
    }
  }
  void TearDown() override {
    if (cells_.empty()) return;
    std::printf("\nConformance (promises of kvl/transport.h)\n%-24s", "");
    for (int promise = 1; promise <= kPromises; ++promise) std::printf("%5d", promise);
    for (const auto& [row, cells] : cells_) {
      std::printf("\n%-24s", row.c_str());
      for (int promise = 1; promise <= kPromises; ++promise) {
        const auto cell = cells.find(promise);
        std::printf("%5s", cell == cells.end()                       ? "-"
                           : cell->second == Verdict::pass           ? "pass"
                           : cell->second == Verdict::not_applicable ? "n/a"
                                                                     : "FAIL");
      }
    }
    std::printf("\n");
    for (const std::string& reason : reasons_) std::printf("  n/a  %s\n", reason.c_str());
  }

 private:
  std::map<std::string, std::map<int, Verdict>> cells_;
  std::set<std::string> reasons_;
};
Table& table() {
  static Table& instance = *new Table;
  return instance;
}
[[maybe_unused]] testing::Environment* const registered =
    testing::AddGlobalTestEnvironment(&table());

using Param = std::tuple<Variant, Check>;
class Conformance : public testing::TestWithParam<Param> {};

TEST_P(Conformance, Holds) {
  const auto& [variant, check] = GetParam();
  if (const std::string missing = missing_here(variant); !missing.empty()) {
    table().add(variant, check, Table::Verdict::not_applicable, missing);
    GTEST_SKIP() << missing;
  }
  const std::string reason = not_applicable(check, variant);
  if (!reason.empty()) {
    table().add(variant, check, Table::Verdict::not_applicable, reason);
    GTEST_SKIP() << reason;
  }
  const auto seed = static_cast<std::uint64_t>(GTEST_FLAG_GET(random_seed)) + 1;
  const std::string broken = run_check(check, variant, seed);
  EXPECT_EQ(broken, "") << "repeat with --gtest_random_seed=" << seed - 1;
  table().add(variant, check, HasFailure() ? Table::Verdict::fail : Table::Verdict::pass, "");
}

std::string param_name(const testing::TestParamInfo<Param>& param) {
  return std::get<0>(param.param).name() + "__" + std::string(std::get<1>(param.param).name);
}

INSTANTIATE_TEST_SUITE_P(All, Conformance,
                         testing::Combine(testing::ValuesIn(variants()),
                                          testing::ValuesIn(all_checks())),
                         param_name);

TEST(ConformanceTable, EveryPromiseHasACheck) {
  std::set<int> proven;
  for (const Check& check : all_checks())
    proven.insert(check.promises.begin(), check.promises.end());
  for (int promise = 1; promise <= kPromises; ++promise) {
    EXPECT_TRUE(proven.contains(promise)) << "promise " << promise;
  }
}

// tcp and shm run everywhere and may be excused from nothing (allocations: where they are counted).
TEST(ConformanceTable, NothingIsExcusedForTcpAndShm) {
  for (const std::string name : {"tcp", "shm"}) {
    const std::unique_ptr<Transport> transport = make_transport_of({name});
    ASSERT_NE(transport, nullptr) << name << " is not built in";
    EXPECT_FALSE(transport->devices().empty()) << transport->why_unusable();
    for (const Variant& variant : variants()) {
      if (variant.transport != name) continue;
      for (const Check& check : all_checks()) {
        const std::string reason = not_applicable(check, variant);
        EXPECT_TRUE(reason.empty() || reason.find("sanitizer") != std::string::npos) << reason;
      }
    }
  }
}

}  // namespace
}  // namespace kvl::conformance
