// A second's worth at once, then the rate; addresses apart; memory bounded.
#include "router/http/rate_limit.h"

#include <gtest/gtest.h>

namespace kvl::http {
namespace {

using namespace std::chrono_literals;

const auto kOne = asio::ip::make_address("10.0.0.1"), kOther = asio::ip::make_address("::2");

TEST(RateLimit, ASecondsWorthAtOnceThenTheRate) {
  RateLimit limit(10);
  TimePoint now{};
  int admitted = 0;
  for (int i = 0; i < 100; ++i) admitted += limit.admit(kOne, now) ? 1 : 0;
  EXPECT_EQ(admitted, 10);
  EXPECT_TRUE(limit.admit(kOther, now)) << "each address for itself";
  for (int i = 0; i < 100; ++i) {
    now += 50ms;
    admitted += limit.admit(kOne, now) ? 1 : 0;
  }
  EXPECT_EQ(admitted, 60) << "5 s at 10 a second";
  now += 1h;
  admitted = 0;
  for (int i = 0; i < 100; ++i) admitted += limit.admit(kOne, now) ? 1 : 0;
  EXPECT_EQ(admitted, 10) << "a quiet hour saves no more than a second's worth";
}

TEST(RateLimit, LessThanOneASecond) {
  RateLimit limit(0.5);
  TimePoint now{};
  EXPECT_TRUE(limit.admit(kOne, now));
  EXPECT_FALSE(limit.admit(kOne, now + 1900ms));
  EXPECT_TRUE(limit.admit(kOne, now + 2100ms));
}

TEST(RateLimit, ZeroIsNoLimitAndKeepsNothing) {
  RateLimit limit(0);
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(limit.admit(kOne, TimePoint{}));
  EXPECT_EQ(limit.addresses(), 0u);
}

TEST(RateLimit, ManyAddressesDoNotTakeAllMemoryNorEachOthersTurn) {
  RateLimit limit(2);
  const auto address = [](std::uint32_t i) {
    return asio::ip::address(asio::ip::address_v4(0x0a000000 + i));
  };
  for (std::uint32_t i = 0; i < 3 * RateLimit::kAddressesMax; ++i) {
    EXPECT_TRUE(limit.admit(address(i), TimePoint{}));
  }
  EXPECT_LE(limit.addresses(), RateLimit::kAddressesMax);
  EXPECT_TRUE(limit.admit(kOther, TimePoint{} + 10s)) << "the quiet ones are forgotten";
  EXPECT_EQ(limit.addresses(), 1u);
}

}  // namespace
}  // namespace kvl::http
