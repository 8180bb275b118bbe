// Seeds of the simulated cluster: without faults all is delivered, with faults nothing is wrong.
#include <gtest/gtest.h>

#include "tests/support/log_guard.h"
#include "tools/sim/run.h"

namespace kvl::simulation {
namespace {

TEST(EngineSim, WithoutFaultsEverythingArrives) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const RunReport report = run({.seed = seed, .world = World::engines, .faults = false});
    ASSERT_TRUE(report.ok) << "kvlane sim --world engines --seed " << seed << ": "
                           << report.violation;
    EXPECT_GT(report.done, 0U);
    EXPECT_EQ(report.quarantined, 0U);
  }
}

TEST(EngineSim, WithFaultsNothingIsWrongAndEverythingEnds) {
  const test::ExpectLog unreachable("peer.no_common_transport");
  const test::ExpectLog late("control.refused");  // a hello that the network holds up
  std::uint64_t done = 0, failed = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    const RunReport report = run({.seed = seed, .world = World::engines});
    ASSERT_TRUE(report.ok) << "kvlane sim --world engines --seed " << seed << ": "
                           << report.violation;
    done += report.done;
    failed += report.failed;
  }
  EXPECT_GT(done, 0U);
  EXPECT_GT(failed, 0U);
}

TEST(EngineSim, EqualSeedsAreEqualRuns) {
  for (std::uint64_t seed : {3U, 17U}) {
    EXPECT_EQ(run({.seed = seed, .world = World::engines}).digest,
              run({.seed = seed, .world = World::engines}).digest);
  }
}

}  // namespace
}  // namespace kvl::simulation
