// Prefix-aware routing through the whole router: where prompts go, and when that is forgotten.
#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <string>
#include <thread>

#include "tests/router/support/router_fixture.h"

namespace kvl::test {
namespace {

RouterOptions by_cost(std::initializer_list<StubWorker*> prefill,
                      std::initializer_list<StubWorker*> decode) {
  RouterOptions options = pd_options(prefill, decode);
  options.policy = "cost";
  return options;
}

std::string prompt(char fill, std::size_t bytes, const std::string& tail) {
  return "{\"text\":\"" + std::string(bytes, fill) + tail + "\"}";
}

std::size_t asked(StubWorker& worker) { return worker.requests("/generate").size(); }

TEST(RouterCost, OnePrefixGoesToOnePrefillWorkerInPd) {
  StubWorker one, two;
  StubWorker decode([&](StubPeer& peer, const StubRequest&) {
    // After the prefill leg of this very request, so that it is not cut off.
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (asked(one) + asked(two) < decode.requests("/generate").size() &&
           std::chrono::steady_clock::now() < end) {
      std::this_thread::yield();
    }
    peer.answer(200, "{}");
  });
  const RunningRouter router(by_cost({&one, &two}, {&decode}));
  TestClient client(router.port());
  for (int i = 0; i < 30; ++i) {
    ASSERT_EQ(client.post("/generate", prompt('a', 8000, std::to_string(i))).status, 200);
    ASSERT_TRUE(router.wait_idle());
  }
  EXPECT_EQ(std::min(asked(one), asked(two)), 0u);
  EXPECT_EQ(std::max(asked(one), asked(two)), 30u);
  EXPECT_EQ(router.metric("kvlane_router_worker_prefill_tokens"), 0);
  EXPECT_EQ(router.metric("kvlane_router_worker_context_tokens"), 0);
  EXPECT_GT(router.metric("kvlane_router_cached_tokens_total"), 29 * 1000);
  EXPECT_GT(router.metric("kvlane_router_prompt_tokens_total"),
            router.metric("kvlane_router_cached_tokens_total"));
}

TEST(RouterCost, WithoutPdAsWellAndBodiesThatAreNoJsonStillPass) {
  StubWorker one(StubWorker::answer_name("1")), two(StubWorker::answer_name("2"));
  const RunningRouter router(in_front_of({&one, &two}));
  TestClient client(router.port());
  const std::string first = client.post("/v1/completions", prompt('a', 8000, "0")).body;
  for (int i = 1; i < 20; ++i) {
    EXPECT_EQ(client.post("/v1/completions", prompt('a', 8000, std::to_string(i))).body, first);
  }
  EXPECT_EQ(client.post("/v1/completions", "this is no JSON").status, 200) << "the worker judges";
}

// While the worker with the prefix computes something long, the next request is cheaper elsewhere.
TEST(RouterCost, AQueueIsWeighedAgainstThePrefix) {
  Gate done;
  const StubWorker::Script slow = [&](StubPeer& peer, const StubRequest& request) {
    const bool long_one = request.body.size() > 100'000;
    EXPECT_TRUE(!long_one || done.wait());
    peer.answer(200, "{}");
  };
  StubWorker one(slow), two(slow);
  const RunningRouter router(in_front_of({&one, &two}));
  TestClient client(router.port());
  ASSERT_EQ(client.post("/generate", prompt('a', 8000, "")).status, 200);
  StubWorker& busy = asked(one) > 0 ? one : two;
  StubWorker& idle = asked(one) > 0 ? two : one;
  std::thread other([&] {
    TestClient long_one(router.port());
    EXPECT_EQ(long_one.post("/generate", prompt('a', 200'000, "")).status, 200);
  });
  EXPECT_TRUE(busy.wait_requests(2));
  EXPECT_EQ(client.post("/generate", prompt('a', 8000, "")).status, 200);
  EXPECT_EQ(asked(idle), 1u);
  done.open();
  other.join();
}

TEST(RouterCost, AFlushForgets) {
  StubWorker one, two;
  const RunningRouter router(in_front_of({&one, &two}));
  TestClient client(router.port());
  ASSERT_EQ(client.post("/generate", prompt('a', 8000, "")).status, 200);
  EXPECT_GT(router.metric("kvlane_router_prefixes"), 0);
  ASSERT_EQ(client.post("/flush_cache", "").status, 200);
  EXPECT_EQ(router.metric("kvlane_router_prefixes"), 0);
}

TEST(RouterCost, AWorkerThatEndsLosesItsCache) {
  const ExpectLog state("fleet.worker_unhealthy");
  StubWorker one, two;
  const RunningRouter router(in_front_of({&one, &two}));
  TestClient client(router.port());
  ASSERT_EQ(client.post("/generate", prompt('a', 8000, "")).status, 200);
  (asked(one) > 0 ? one : two).stop();
  ASSERT_EQ(client.post("/generate", prompt('b', 100, "")).status, 200);  // either may be asked
  ASSERT_EQ(client.post("/generate", prompt('a', 8000, "")).status, 200);
  ASSERT_EQ(client.post("/generate", prompt('a', 8000, "")).status, 200);
  EXPECT_EQ(router.metric("kvlane_router_worker_healthy"), 1);
}

// What a worker says of itself bounds what it is thought to keep.
TEST(RouterCost, CapacityIsAskedFor) {
  const StubWorker::Script script = [](StubPeer& peer, const StubRequest& request) {
    peer.answer(
        200, request.path == "/get_server_info" ? R"({"a":1,"max_total_num_tokens": 5000})" : "{}");
  };
  StubWorker worker(script);
  RouterOptions options;
  options.workers = {worker.url()};
  options.health_check_interval_secs = 0.05;
  const RunningRouter router(options);
  TestClient client(router.port());
  ASSERT_TRUE(worker.wait_requests(1, "/get_server_info"));
  // 5,000 tokens are 20,000 bytes of text: of the first prompt's five prefixes the two longest, its
  // end, are not kept beside the other two prompts.
  for (const char fill : {'a', 'b', 'c'}) {
    ASSERT_EQ(client.post("/generate", prompt(fill, 9000, "")).status, 200);
  }
  EXPECT_EQ(router.metric("kvlane_router_prefixes"), 3 * 5 - 2);
}

TEST(RouterSessions, TheHeaderNamesTheSession) {
  StubWorker one(StubWorker::answer_name("1")), two(StubWorker::answer_name("2"));
  for (const char* policy : {"manual", "consistent_hashing"}) {
    RouterOptions options = in_front_of({&one, &two});
    options.policy = policy;
    const RunningRouter router(options);
    TestClient client(router.port());
    std::map<std::string, std::string> last;
    for (int i = 0; i < 120; ++i) {
      const std::string session = "s" + std::to_string(i % 24);
      ASSERT_TRUE(client.send("POST /generate HTTP/1.1\r\nHost: r\r\nX-Session-ID: " + session +
                              "\r\nContent-Length: 2\r\n\r\n{}"));
      const std::string name = client.read_answer().body;
      EXPECT_TRUE(i < 24 || name == last[session]) << policy << " " << session;
      last[session] = name;
    }
    std::set<std::string> names;
    for (const auto& [session, name] : last) names.insert(name);
    // Of 24 sessions the least loaded has all while nothing runs; a hash divides them.
    EXPECT_GE(names.size(), std::string(policy) == "manual" ? 1u : 2u) << policy;
  }
}

}  // namespace
}  // namespace kvl::test
