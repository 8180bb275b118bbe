// Which renewal follows from which answer.
#include "kvcache/bootstrap/lease_keeper.h"

#include <gtest/gtest.h>

#include "kvcache/bootstrap/wire.h"
#include "tests/support/log_guard.h"

namespace kvl::bootstrap {
namespace {

constexpr std::int64_t kMs = 1'000'000;

RankRecord record() {
  RankRecord r;
  r.instance = "a";
  r.address = "127.0.0.1:1";
  return r;
}
Result<HttpAnswer> granted(std::uint64_t lease, std::uint32_t lease_ms) {
  return HttpAnswer{200, encode_lease({lease, lease_ms})};
}
const Result<HttpAnswer> kDone = HttpAnswer{200, "{}"};
const Result<HttpAnswer> kUnknown = HttpAnswer{404, encode_error("lease", "no such lease")};

TEST(LeaseKeeper, RenewsAThirdOfTheLeaseApart) {
  LeaseKeeper keeper(9000);
  EXPECT_EQ(keeper.next_ns(), INT64_MAX);
  keeper.add(record(), {7, 9000}, 0);
  EXPECT_EQ(keeper.next_ns(), 3000 * kMs);
  EXPECT_FALSE(keeper.next(3000 * kMs - 1).has_value());
  const auto step = keeper.next(3000 * kMs);
  ASSERT_TRUE(step.has_value());
  EXPECT_EQ(step->call.method, "PUT");
  EXPECT_EQ(step->call.path, "/kvlane/v1/lease/7");
  EXPECT_FALSE(keeper.next(3000 * kMs).has_value()) << "one call at a time";
  EXPECT_FALSE(keeper.on_answer(*step, kDone, 3001 * kMs).has_value());
  EXPECT_EQ(keeper.next_ns(), 6000 * kMs);
  EXPECT_EQ(keeper.failed_renewals(), 0U);
}

// A service that grants less than was asked for must not lose the registration between renewals.
TEST(LeaseKeeper, AShorterLeaseThanAskedForIsRenewedInItsTime) {
  LeaseKeeper keeper(9000);
  keeper.add(record(), {7, 600}, 0);
  for (int renewal = 1; renewal <= 5; ++renewal) {
    ASSERT_LE(keeper.next_ns(), renewal * 600 * kMs);
    const std::int64_t now_ns = keeper.next_ns();
    const auto step = keeper.next(now_ns);
    ASSERT_TRUE(step.has_value());
    keeper.on_answer(*step, kDone, now_ns);
    EXPECT_EQ(keeper.next_ns(), now_ns + 200 * kMs);
  }
}

TEST(LeaseKeeper, AForgottenRankIsRegisteredAgain) {
  const test::ExpectLog failed("bootstrap.renewal_failed");
  LeaseKeeper keeper(9000);
  const std::uint64_t id = keeper.add(record(), {7, 9000}, 0);
  const auto renew = keeper.next(3000 * kMs);
  const auto again = keeper.on_answer(*renew, kUnknown, 3000 * kMs);
  ASSERT_TRUE(again.has_value());
  EXPECT_TRUE(again->registering);
  EXPECT_EQ(again->call.path, "/kvlane/v1/register");
  EXPECT_FALSE(keeper.on_answer(*again, granted(8, 300), 3100 * kMs).has_value());
  EXPECT_EQ(keeper.next_ns(), 3200 * kMs);
  EXPECT_EQ(keeper.next(3200 * kMs)->call.path, "/kvlane/v1/lease/8");
  EXPECT_EQ(keeper.remove(id), std::optional<std::uint64_t>(8)) << "known by its first lease";
  EXPECT_EQ(keeper.failed_renewals(), 0U);
}

TEST(LeaseKeeper, AFailureIsCountedAndTriedAgain) {
  const test::ExpectLog failed("bootstrap.renewal_failed");
  LeaseKeeper keeper(9000);
  keeper.add(record(), {7, 9000}, 0);
  const auto step = keeper.next(3000 * kMs);
  EXPECT_FALSE(keeper.on_answer(*step, Status{Code::timed_out, ""}, 3000 * kMs).has_value());
  EXPECT_EQ(keeper.failed_renewals(), 1U);
  EXPECT_EQ(keeper.next_ns(), 6000 * kMs);
}

// Unregistered while a call was under way: nothing of it may stay.
TEST(LeaseKeeper, WhatWasUnregisteredMeanwhileIsRevoked) {
  for (const bool registering : {false, true}) {
    LeaseKeeper keeper(9000);
    const std::uint64_t id = keeper.add(record(), {7, 9000}, 0);
    auto step = keeper.next(3000 * kMs);
    if (registering) step = keeper.on_answer(*step, kUnknown, 3000 * kMs);
    EXPECT_EQ(keeper.remove(id), std::optional<std::uint64_t>(7));
    EXPECT_FALSE(keeper.remove(id).has_value());
    const auto revoke = keeper.on_answer(*step, registering ? granted(9, 9000) : kDone, 3000 * kMs);
    ASSERT_TRUE(revoke.has_value());
    EXPECT_EQ(revoke->call.method, "DELETE");
    EXPECT_EQ(revoke->call.path, registering ? "/kvlane/v1/lease/9" : "/kvlane/v1/lease/7");
    EXPECT_FALSE(keeper.on_answer(*revoke, kDone, 3000 * kMs).has_value());
  }
}

}  // namespace
}  // namespace kvl::bootstrap
