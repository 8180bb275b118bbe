// Seeds of the simulated serving cluster: without faults everything arrives, with faults nothing is
// wrong, and the seeds that once found a bug stay green.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <thread>

#include "tests/sim/regressions.h"
#include "tests/support/log_guard.h"
#include "tools/sim/campaign.h"
#include "tools/sim/run.h"

namespace kvl::simulation {
namespace {

std::uint64_t runs_or(std::uint64_t usual) {
  const char* const text = std::getenv("KVL_SIM_RUNS");
  return text == nullptr ? usual : std::strtoull(text, nullptr, 10);
}

unsigned cores() { return std::max(1U, std::thread::hardware_concurrency()); }

void expect_ok(const Totals& totals) {
  if (!totals.failure) return;
  const char* const tries = std::getenv("KVL_SIM_SHRINK");
  const Failure small = shrink(*totals.failure, tries == nullptr ? 200 : std::atoi(tries));
  ADD_FAILURE() << totals.failure->report.violation
                << "\n  again:   " << command_of(totals.failure->options) << " --trace"
                << "\n  smaller: " << command_of(small.options) << " --trace";
}

const auto kQuietly = [](const Totals&) {};

// What a faulty cluster rightly logs at level warning.
struct ServingSim : testing::Test {
  test::ExpectLog renewals{"bootstrap.renewal_failed"};
  test::ExpectLog unreachable{"peer.no_common_transport"};
  test::ExpectLog late{"control.refused"};  // a hello that the network holds up
  test::ExpectLog rails{"rail."};
  test::ExpectLog handoffs{"handoff."};
};

TEST_F(ServingSim, WithoutFaultsEverythingArrives) {
  const Totals totals = run_many({.faults = false}, runs_or(60), cores(), kQuietly);
  expect_ok(totals);
  EXPECT_EQ(totals.done, totals.requests);
  EXPECT_EQ(totals.quarantined, 0U);
}

TEST_F(ServingSim, WithFaultsNothingIsWrongAndEverythingEnds) {
  const Totals totals = run_many({}, runs_or(300), cores(), kQuietly);
  expect_ok(totals);
  EXPECT_GT(totals.done, 0U);
  EXPECT_GT(totals.failed, 0U);
  EXPECT_GT(totals.quarantined, 0U);
  EXPECT_GT(totals.crashes, 0U);
}

TEST_F(ServingSim, SeedsThatFoundBugs) {
  for (const Regression& regression : kRegressions) {
    const RunReport report = run({.seed = regression.seed});
    EXPECT_TRUE(report.ok) << "kvlane sim --seed " << regression.seed << " --trace\n  "
                           << report.violation << "\n  it was once: " << regression.bug;
  }
}

TEST_F(ServingSim, EqualOptionsAreEqualRuns) {
  for (const std::uint64_t seed : {3U, 17U, 50U}) {
    const RunReport one = run({.seed = seed}), other = run({.seed = seed});
    EXPECT_EQ(one.digest, other.digest);
    EXPECT_EQ(one.steps, other.steps);
    EXPECT_NE(one.digest, run({.seed = seed + 1}).digest);
  }
}

// Leaving a request or a fault out changes no other.
TEST_F(ServingSim, ACommandNamesItsRun) {
  const RunOptions options{.seed = 9,
                           .noise = false,
                           .prefills = 1,
                           .keep_requests = std::set<std::uint32_t>{3, 9},
                           .keep_faults = std::set<std::uint32_t>{}};
  EXPECT_EQ(command_of(options),
            "kvlane sim --seed 9 --prefills 1 --keep-requests 3,9 --keep-faults none --no-noise");
  const RunReport report = run(options);
  EXPECT_TRUE(report.ok) << report.violation;
  EXPECT_EQ(report.requests, 2U);
  EXPECT_EQ(report.faults, 0U);
}

}  // namespace
}  // namespace kvl::simulation
