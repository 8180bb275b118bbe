// The fleet's rules and the policies, with a clock of the test's own.
#include "router/fleet/fleet.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

#include "router/policy/policy.h"
#include "tests/support/log_guard.h"

namespace kvl::router {
namespace {

class TestClock final : public Clock {
 public:
  std::int64_t now_ns() const override { return now; }
  std::int64_t now = 1;
};

TEST(Fleet, FailuresInARowMakeAWorkerUnhealthyAndOneSuccessForgivesThem) {
  const test::ExpectLog expected("fleet.worker_unhealthy");
  TestClock clock;
  Fleet fleet({.failure_threshold = 3, .success_threshold = 2}, clock);
  Worker& worker = **fleet.add(WorkerRole::decode, "http://a:1", -1);
  EXPECT_TRUE(worker.usable()) << "a new worker is tried";
  fleet.failed(worker, WorkerFault::error_answer, "x");
  fleet.failed(worker, WorkerFault::error_answer, "x");
  fleet.succeeded(worker);
  fleet.failed(worker, WorkerFault::error_answer, "x");
  fleet.failed(worker, WorkerFault::error_answer, "x");
  EXPECT_TRUE(worker.usable());
  fleet.failed(worker, WorkerFault::error_answer, "x");
  EXPECT_FALSE(worker.usable());
  fleet.checked(worker, true, 5, "");
  EXPECT_FALSE(worker.usable()) << "two good checks are asked for";
  fleet.checked(worker, true, 5, "");
  EXPECT_TRUE(worker.usable());
  fleet.failed(worker, WorkerFault::unreachable, "refused");
  EXPECT_FALSE(worker.usable()) << "a refused connection says enough";
}

TEST(Fleet, ABusyWorkersSlowHealthCheckIsNotHeldAgainstIt) {
  const test::ExpectLog expected("fleet.worker_unhealthy");
  TestClock clock;
  Fleet fleet({.failure_threshold = 1}, clock);
  Worker& worker = **fleet.add(WorkerRole::decode, "http://a:1", -1);
  fleet.succeeded(worker);
  clock.now += 1'000'000'000;
  fleet.checked(worker, false, 5, "slow");
  EXPECT_TRUE(worker.usable());
  clock.now += 5'000'000'000;
  fleet.checked(worker, false, 5, "slow");
  EXPECT_FALSE(worker.usable());
}

TEST(Fleet, DrainingEndsWhenIdleOrLate) {
  TestClock clock;
  Fleet fleet({.drain_timeout_secs = 10}, clock);
  const WorkerPtr idle = *fleet.add(WorkerRole::decode, "http://a:1", -1);
  const WorkerPtr busy = *fleet.add(WorkerRole::decode, "http://a:2", -1);
  busy->in_flight = 1;
  EXPECT_TRUE(fleet.drain(idle->id).ok());
  EXPECT_TRUE(fleet.drain(busy->id).ok());
  EXPECT_TRUE(fleet.drain(busy->id).ok()) << "twice is once";
  EXPECT_EQ(fleet.drain(99).code(), Code::not_found);
  fleet.succeeded(*busy);
  EXPECT_FALSE(busy->usable()) << "a good answer does not undo it";
  fleet.sweep();
  EXPECT_EQ(fleet.workers()->all.size(), 1u);
  clock.now += 11'000'000'000;
  fleet.sweep();
  EXPECT_TRUE(fleet.workers()->all.empty());
}

TEST(Fleet, UrlsAreCheckedAndDuplicatesRefused) {
  TestClock clock;
  Fleet fleet({}, clock);
  for (const char* url : {"", "http://", "http://a:0", "http://a:70000", "http://a:1/path",
                          "ftp://a:1", "http://a b:1", "http://[::1", "http://[::1]x"}) {
    EXPECT_EQ(fleet.add(WorkerRole::decode, url, -1).code(), Code::invalid_argument) << url;
  }
  EXPECT_EQ((*fleet.add(WorkerRole::prefill, "[::1]:5", 9))->session_prefix,
            "\"bootstrap_host\":\"[::1]\",\"bootstrap_port\":9,\"bootstrap_room\":");
  EXPECT_EQ((*fleet.add(WorkerRole::prefill, "http://h:5/", -1))->session_prefix,
            "\"bootstrap_host\":\"h\",\"bootstrap_port\":null,\"bootstrap_room\":");
  EXPECT_EQ(fleet.add(WorkerRole::prefill, "h:5", 1).code(), Code::permission);
  EXPECT_TRUE(fleet.add(WorkerRole::decode, "h:5", 1).ok()) << "another role is another worker";
}

class Policies : public ::testing::Test {
 protected:
  Policies() {
    for (std::uint32_t i = 0; i < 4; ++i) {
      workers_[i].id = i + 1;
      workers_[i].address = "http://10.0.0." + std::to_string(i) + ":30000";
      candidates_.push_back(&workers_[i]);
    }
  }
  std::map<std::uint32_t, int> picks(const char* name, int count) {
    const std::unique_ptr<Policy> policy = policy_of(name);
    std::map<std::uint32_t, int> found;
    for (int i = 0; i < count; ++i) ++found[pick(*policy)];
    return found;
  }
  std::unique_ptr<Policy> policy_of(const char* name, WorkerRole role = WorkerRole::prefill) {
    return *make_policy(name, parts(role));
  }
  PolicyParts parts(WorkerRole role) {
    return {.role = role, .prefixes = prefixes_, .sessions = sessions_, .clock = clock_};
  }
  std::uint32_t pick(Policy& policy) {
    return policy.pick({.prompt = prompt_, .session = session_}, candidates_, random_).worker->id;
  }
  Worker workers_[4];
  std::vector<Worker*> candidates_;
  Random random_{7};
  PrefixIndex prefixes_{1 << 20};
  TestClock clock_;
  SessionTable sessions_{1'000'000'000};
  PromptKeys prompt_;
  std::string session_;
};

TEST_F(Policies, RoundRobinIsEvenAndKeepsItsPlaceWhenOneIsMissing) {
  EXPECT_EQ(picks("round_robin", 8),
            (std::map<std::uint32_t, int>{{1, 2}, {2, 2}, {3, 2}, {4, 2}}));
  const std::unique_ptr<Policy> policy = policy_of("round_robin");
  EXPECT_EQ(pick(*policy), 1u);
  EXPECT_EQ(pick(*policy), 2u);
  const std::vector<Worker*> without_three = {&workers_[0], &workers_[1], &workers_[3]};
  EXPECT_EQ(policy->pick({.prompt = prompt_}, without_three, random_).worker->id, 4u);
  EXPECT_EQ(pick(*policy), 1u);
}

TEST_F(Policies, RandomReachesAll) {
  const auto found = picks("random", 4000);
  for (const auto& [id, count] : found) EXPECT_NEAR(count, 1000, 200) << id;
}

TEST_F(Policies, LeastLoadedTakesTheMinimumAndSpreadsTies) {
  workers_[0].in_flight = 3;
  workers_[2].in_flight = 1;
  const auto found = picks("least_loaded", 2000);
  EXPECT_EQ(found.size(), 2u);
  EXPECT_NEAR(found.at(2), 1000, 200);
  EXPECT_NEAR(found.at(4), 1000, 200);
}

TEST_F(Policies, PowerOfTwoNeverTakesTheMostLoaded) {
  workers_[1].in_flight = 5;
  const auto found = picks("power_of_two", 1000);
  EXPECT_EQ(found.count(2), 0u);
  EXPECT_EQ(found.size(), 3u);
  candidates_.resize(1);
  EXPECT_EQ(picks("power_of_two", 3), (std::map<std::uint32_t, int>{{1, 3}}));
}

TEST_F(Policies, UnknownNamesAreRefused) {
  EXPECT_EQ(make_policy("fastest", parts(WorkerRole::prefill)).code(), Code::invalid_argument);
  EXPECT_FALSE(wants_prompts("fastest"));
}

std::string text(char fill, std::size_t bytes) { return std::string(bytes, fill); }

TEST_F(Policies, CostGoesWhereThePrefixIs) {
  for (const char* name : {"cost", "cache_aware", "kv_aware"}) {
    EXPECT_TRUE(wants_prompts(name));
    const std::unique_ptr<Policy> policy = policy_of(name);
    prompt_ = prompt_keys(text(name[1], 40'000), 0);
    const std::uint32_t first = pick(*policy);
    prompt_ = prompt_keys(text(name[1], 36'000) + text('b', 20'000), 0);
    for (int i = 0; i < 20; ++i) {
      const Choice choice = policy->pick({.prompt = prompt_}, candidates_, random_);
      EXPECT_EQ(choice.worker->id, first);
      EXPECT_GE(choice.cached_tokens, 8'000u);
    }
  }
}

// A cached prefix is worth three times its tokens and no more.
TEST_F(Policies, CostLeavesAWorkerWhoseQueueIsLongerThanWhatItSaves) {
  const std::unique_ptr<Policy> policy = policy_of("cost");
  prompt_ = prompt_keys(text('a', 40'000), 0);
  const std::uint32_t first = pick(*policy);
  Worker& favourite = workers_[first - 1];
  favourite.prefill_tokens = 26'000;
  EXPECT_EQ(pick(*policy), first);
  favourite.prefill_tokens = 29'000;
  const std::uint32_t second = pick(*policy);
  EXPECT_NE(second, first);
  favourite.prefill_tokens = 500;
  workers_[second - 1].prefill_tokens = 400;
  EXPECT_EQ(pick(*policy), second) << "both have it now";
}

TEST_F(Policies, CostOfDecodeIsWhatItReadsForEachToken) {
  const std::unique_ptr<Policy> policy = policy_of("cost", WorkerRole::decode);
  for (Worker& worker : workers_) worker.context_tokens = 100'000;
  workers_[2].context_tokens = 60'000;
  workers_[2].prefill_tokens = 1'000'000;  // prefill is not decode's
  prompt_ = prompt_keys(text('a', 4'000), 0);
  EXPECT_EQ(pick(*policy), 3u);
}

TEST_F(Policies, CostSpreadsWhatItKnowsNothingAbout) {
  const auto found = picks("cost", 4000);
  for (const auto& [id, count] : found) EXPECT_NEAR(count, 1000, 200) << id;
  workers_[0].in_flight = 1;
  EXPECT_EQ(picks("cost", 100).count(1), 0u);
}

// A worker that goes takes its own sessions with it and no others.
TEST_F(Policies, ConsistentHashingMovesOnlyWhatItMust) {
  const std::unique_ptr<Policy> policy = policy_of("consistent_hash");
  std::map<std::string, std::uint32_t> before;
  std::map<std::uint32_t, int> share;
  for (int i = 0; i < 2000; ++i) {
    session_ = "user-" + std::to_string(i);
    before[session_] = pick(*policy);
    ++share[before[session_]];
  }
  for (const auto& [id, count] : share) EXPECT_NEAR(count, 500, 100) << id;
  candidates_.erase(candidates_.begin() + 1);
  for (const auto& [session, id] : before) {
    session_ = session;
    const std::uint32_t now = pick(*policy);
    EXPECT_TRUE(now == id || id == 2) << session;
  }
}

TEST_F(Policies, ConsistentHashingTakesThePromptForTheSession) {
  const std::unique_ptr<Policy> policy = policy_of("consistent_hashing");
  std::map<std::uint32_t, int> found;
  for (char c = 'a'; c <= 'z'; ++c) {
    prompt_ = prompt_keys(text(c, 1000), 0);
    const std::uint32_t first = pick(*policy);
    prompt_ = prompt_keys(text(c, 900) + text('0', 50'000), 0);
    EXPECT_EQ(pick(*policy), first) << "the beginning counts";
    ++found[first];
  }
  EXPECT_EQ(found.size(), 4u);
}

TEST_F(Policies, PrefixHashGivesNobodyMuchMoreThanTheMean) {
  const std::unique_ptr<Policy> policy = policy_of("prefix_hash");
  prompt_ = prompt_keys(text('a', 1000), 0);
  const std::uint32_t owner = pick(*policy);
  EXPECT_EQ(pick(*policy), owner);
  for (int i = 0; i < 400; ++i) ++workers_[pick(*policy) - 1].in_flight;
  for (const Worker& worker : workers_) EXPECT_LE(worker.in_flight, 126u);
  EXPECT_GE(workers_[owner - 1].in_flight, 120u);
}

TEST_F(Policies, ManualKeepsASessionUntilItsWorkerGoesOrItFallsSilent) {
  const std::unique_ptr<Policy> policy = policy_of("manual");
  session_ = "one";
  const std::uint32_t first = pick(*policy);
  workers_[first - 1].in_flight = 50;
  for (int i = 0; i < 10; ++i) EXPECT_EQ(pick(*policy), first) << "whatever its load";
  session_ = "two";
  EXPECT_NE(pick(*policy), first) << "a new one goes where there is least to do";
  session_ = "one";
  Worker* const gone = candidates_[first - 1];
  std::erase(candidates_, gone);
  const std::uint32_t second = pick(*policy);
  EXPECT_NE(second, first);
  candidates_.insert(candidates_.begin() + first - 1, gone);
  EXPECT_EQ(pick(*policy), second) << "it has moved";
  clock_.now += 1'000'000'001;
  workers_[second - 1].in_flight = 50;
  EXPECT_NE(pick(*policy), second) << "forgotten";
}

TEST_F(Policies, SessionsAreBounded) {
  SessionTable table(1'000);
  for (int i = 0; i < 5000; ++i) table.assign("s" + std::to_string(i), 1, i);
  EXPECT_LE(table.size(), 1'500u);
  EXPECT_EQ(table.find("s4999", 5000), 1u);
  EXPECT_EQ(table.find("s10", 5000), 0u);
}

// Long prompts to the last, short ones to the first; each gets as many tokens.
TEST_F(Policies, BucketsDivideTheTokensByLength) {
  const std::unique_ptr<Policy> policy = policy_of("bucket");
  std::map<std::uint32_t, std::uint64_t> tokens, longest;
  for (int i = 0; i < 4000; ++i) {
    prompt_.bytes = 100 + random_() % 100'000;
    prompt_.tokens_per_byte = 0.25;
    const std::uint32_t id = pick(*policy);
    if (i < 1500) continue;
    tokens[id] += prompt_.tokens();
    longest[id] = std::max(longest[id], prompt_.tokens());
  }
  ASSERT_EQ(tokens.size(), 4u);
  std::uint64_t sum = 0;
  for (const auto& [id, count] : tokens) sum += count;
  for (const auto& [id, count] : tokens) {
    EXPECT_NEAR(static_cast<double>(count) / static_cast<double>(sum), 0.25, 0.06) << id;
  }
  for (std::uint32_t id = 2; id <= 4; ++id) EXPECT_GT(longest[id], longest[id - 1]);
}

}  // namespace
}  // namespace kvl::router
