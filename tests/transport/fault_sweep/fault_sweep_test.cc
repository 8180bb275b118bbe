// Fail call 0, 1, 2, … until a run meets no fault; the same for events and for lost peers.
#include <dirent.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "tests/transport/fault_sweep/session.h"

namespace kvl::conformance {
namespace {

using fault::FaultPlan;
using fault::FaultState;

constexpr std::uint64_t kRunsMax = 500;

std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* const directory = ::opendir("/proc/self/fd");
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

const std::string kFakeName = "libfabric_" + std::string(kFakeEfa);

std::vector<std::string> transports() {
  std::vector<std::string> names{"sim", kFakeName};
  for (const auto& transport : make_transports(Settings{})) {
    // Where there is no device there is nothing to make fail.
    if (!transport->devices().empty()) names.emplace_back(transport->name());
  }
  return names;
}

class FaultSweep : public testing::TestWithParam<std::tuple<std::string, bool>> {
 protected:
  void SetUp() override {
    options_.transport = std::get<0>(GetParam());
    if (options_.transport == kFakeName) {
      options_.transport = "libfabric";
      options_.flavour = kFakeEfa;
    }
    options_.device_memory = std::get<1>(GetParam());
    if (options_.transport == "sim" && options_.device_memory) {
      GTEST_SKIP() << "sim simulates a NIC of host memory";
    }
    if (!options_.flavour.empty() && options_.device_memory) {
      GTEST_SKIP() << "memory of a GPU is the NIC's to register (FI_HMEM)";
    }
    // The first run fills what is kept for ever (log, registries).
    const SessionResult clean = run(FaultPlan{});
    ASSERT_EQ(clean.broken, "");
    ASSERT_FALSE(clean.reported) << clean.first_report;
    descriptors_ = open_descriptors();
  }
  SessionResult run(const FaultPlan& plan) {
    state_ = std::make_shared<FaultState>(plan);
    return run_session(options_, state_);
  }
  // Runs plan_of(0), plan_of(1), … until one is not hit; returns how many were.
  std::uint64_t sweep(const std::function<FaultPlan(std::uint64_t)>& plan_of,
                      const std::function<void(std::uint64_t, const SessionResult&)>& judge) {
    for (std::uint64_t n = 0; n < kRunsMax; ++n) {
      const SessionResult result = run(plan_of(n));
      EXPECT_EQ(result.broken, "") << "fault " << n;
      EXPECT_EQ(open_descriptors(), descriptors_) << "descriptors leak after fault " << n;
      if (state_->hits() == 0 && n < state_->batches() && !state_->plan().batches.empty()) {
        continue;  // that batch had failed already: it was cancelled
      }
      if (state_->hits() == 0) {
        EXPECT_FALSE(result.reported) << "no fault, yet: " << result.first_report;
        return n;
      }
      judge(n, result);
      if (HasFailure()) return n;
    }
    ADD_FAILURE() << "every run met a fault";
    return kRunsMax;
  }

  SessionOptions options_;
  std::size_t descriptors_ = 0;
  std::shared_ptr<FaultState> state_;
};

// Nobody tries again: the session may end early, never wrongly.
TEST_P(FaultSweep, EveryCallMayFail) {
  std::uint64_t reported = 0;
  const std::uint64_t faults = sweep(
      [](std::uint64_t n) {
        FaultPlan plan;
        plan.any_call = n;
        plan.any_status = {Code::unavailable, "fault: planned"};
        return plan;
      },
      [&](std::uint64_t, const SessionResult& result) { reported += result.reported; });
  EXPECT_GE(faults, 20U);
  EXPECT_GE(reported, 15U);
  RecordProperty("faults", static_cast<int>(faults));
}

// Exhausted means: nothing was changed, try again after poll(). Whoever does gets everything done.
TEST_P(FaultSweep, ExhaustedCallsMayBeRepeated) {
  options_.retry = true;
  sweep(
      [](std::uint64_t n) {
        FaultPlan plan;
        plan.any_call = n;
        return plan;
      },
      [&](std::uint64_t n, const SessionResult& result) {
        // What the Link itself says over the control channel may cost the peer, but aloud.
        const bool by_link = state_->hit_call() == fault::Call::control_send;
        EXPECT_TRUE(!result.reported || by_link) << "fault " << n << ": " << result.first_report;
      });
}

TEST_P(FaultSweep, EveryBatchMayFail) {
  const std::uint64_t faults = sweep(
      [](std::uint64_t n) {
        FaultPlan plan;
        plan.batches = {{n, Code::unavailable}};
        return plan;
      },
      [](std::uint64_t n, const SessionResult& result) {
        EXPECT_TRUE(result.reported) << "failed batch " << n << " was not reported";
      });
  EXPECT_EQ(faults, 4U);
}

TEST_P(FaultSweep, ThePeerMayBeLostAfterEveryBatch) {
  const std::uint64_t faults = sweep(
      [](std::uint64_t n) {
        FaultPlan plan;
        plan.peers = {{n, Code::peer_lost}};
        return plan;
      },
      [](std::uint64_t, const SessionResult&) {});
  EXPECT_GE(faults, 3U);
}

TEST_P(FaultSweep, EveryEventMayBeLate) {
  const std::uint64_t faults = sweep(
      [](std::uint64_t n) {
        FaultPlan plan;
        plan.events = {{n, 1, 7}};
        return plan;
      },
      [](std::uint64_t n, const SessionResult& result) {
        EXPECT_FALSE(result.reported) << "late event " << n << ": " << result.first_report;
      });
  EXPECT_GE(faults, 6U);
}

std::string param_name(const testing::TestParamInfo<std::tuple<std::string, bool>>& param) {
  return std::get<0>(param.param) + (std::get<1>(param.param) ? "_device" : "_host");
}

INSTANTIATE_TEST_SUITE_P(All, FaultSweep,
                         testing::Combine(testing::ValuesIn(transports()), testing::Bool()),
                         param_name);

}  // namespace
}  // namespace kvl::conformance
