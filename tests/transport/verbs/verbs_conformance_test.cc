// Every promise of kvl/transport.h over an RDMA device in memory, which does its work a little at a
// time and forgives nothing: what a machine without RDMA can prove of this transport.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include "tests/transport/conformance/check.h"
#include "tests/transport/verbs/fake_device.h"
#include "tests/transport/verbs/fake_host.h"
#include "transport/verbs/verbs_transport.h"

namespace kvl::conformance {

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name(); }
void PrintTo(const Check& check, std::ostream* out) { *out << check.name; }

namespace {

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const Mode mode : {Mode::one_thread, Mode::threads}) {
    for (const char* const pace : {"at_once", "slow"}) {
      Variant variant{"verbs"};
      variant.flavour = "fake";
      variant.mode = mode;
      variant.flags = {{"pace", pace}};
      all.push_back(variant);
    }
  }
  return all;
}

using Param = std::tuple<Variant, Check>;
class VerbsConformance : public testing::TestWithParam<Param> {};

TEST_P(VerbsConformance, Holds) {
  auto [variant, check] = GetParam();
  const std::string reason = not_applicable(check, variant);
  if (!reason.empty()) GTEST_SKIP() << reason;
  test::FakeDevice fake;
  const test::FakeHost host(fake.name);
  if (variant.flags.front().second == "slow") fake.pace = 7;
  variant.make = [&] {
    verbs::VerbsConfig config;
    config.connect_timeout_ms = 1500;
    return verbs::make_transport(config, fake.api(), host.places());
  };
  const auto seed = static_cast<std::uint64_t>(GTEST_FLAG_GET(random_seed)) + 1;
  EXPECT_EQ(run_check(check, variant, seed), "") << "repeat with --gtest_random_seed=" << seed - 1;
  EXPECT_EQ(fake.objects(), 0U);
  EXPECT_TRUE(fake.misuse.empty()) << fake.misuse.front();
}

INSTANTIATE_TEST_SUITE_P(All, VerbsConformance,
                         testing::Combine(testing::ValuesIn(variants()),
                                          testing::ValuesIn(all_checks())),
                         [](const testing::TestParamInfo<Param>& param) {
                           const Variant& variant = std::get<0>(param.param);
                           return variant.name() + "_" + variant.flags.front().second + "__" +
                                  std::string(std::get<1>(param.param).name);
                         });

}  // namespace
}  // namespace kvl::conformance
