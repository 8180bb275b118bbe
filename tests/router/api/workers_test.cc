// The fleet from outside: /workers, /readiness, health checks, the other answers of the router.
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "tests/router/support/router_fixture.h"

namespace kvl::test {
namespace {

// Repeats a GET until its answer holds the text.
bool wait_answer(std::uint16_t port, const std::string& path, std::string_view text) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  TestClient client(port);
  while (!client.call("GET", path).has(text)) {
    if (std::chrono::steady_clock::now() > end) return false;
  }
  return true;
}

TEST(Workers, AreAddedAndDrainedWhileRequestsRun) {
  Gate go;
  StubWorker prefill, first(StubWorker::answer_name("first"));
  StubWorker second(StubWorker::answer_name("second"));
  first.set_script([&](StubPeer& peer, const StubRequest&) {
    go.wait();
    peer.answer(200, "{\"name\":\"first\"}");
  });
  const RunningRouter router(pd_options({&prefill}, {&first}));
  TestClient client(router.port()), admin(router.port());
  ASSERT_TRUE(client.send_post("/generate", "{}"));
  ASSERT_TRUE(first.wait_requests(1));

  const std::string added = "{\"url\":\"" + second.url() + "\",\"worker_type\":\"decode\"}";
  EXPECT_EQ(admin.post("/workers", added).status, 201);
  EXPECT_EQ(admin.post("/workers", added).status, 409);
  EXPECT_TRUE(admin.call("GET", "/workers").has("\"total\":3"));

  EXPECT_EQ(admin.call("DELETE", "/workers/2").status, 202);
  EXPECT_TRUE(admin.call("GET", "/workers/2").has("\"state\":\"draining\""));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(admin.post("/generate", "{}").body, "{\"name\":\"second\"}");
  }
  go.open();
  EXPECT_EQ(client.read_answer().body, "{\"name\":\"first\"}") << "the drain waited for it";
  EXPECT_TRUE(wait_answer(router.port(), "/workers", "\"total\":2"));
  EXPECT_EQ(admin.call("GET", "/workers/2").status, 404);
  EXPECT_EQ(
      admin.call("DELETE", "/workers?url=http%3A%2F%2F127.0.0.1%3A" + std::to_string(second.port()))
          .status,
      202);
  EXPECT_TRUE(wait_answer(router.port(), "/workers", "\"total\":1"));
  const TestAnswer answer = admin.post("/generate", "{}");
  EXPECT_EQ(answer.status, 503);
  EXPECT_TRUE(answer.has("no decode worker is available")) << answer.body;
}

TEST(Workers, WrongDescriptionsAreRefused) {
  StubWorker prefill, decode;
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient admin(router.port());
  for (const char* body :
       {"", "[]", "{}", "{\"url\":1}", "{\"url\":\"x y\",\"worker_type\":\"decode\"}",
        "{\"url\":\"http://h:1\"}", "{\"url\":\"http://h:1\",\"worker_type\":\"cook\"}",
        "{\"url\":\"http://h:1\",\"worker_type\":\"prefill\",\"bootstrap_port\":70000}"}) {
    EXPECT_EQ(admin.post("/workers", body).status, 400) << body;
  }
  EXPECT_EQ(admin.call("DELETE", "/workers/77").status, 404);
  EXPECT_EQ(admin.call("DELETE", "/workers/x").status, 404);
  EXPECT_EQ(admin.call("DELETE", "/workers").status, 404);
}

TEST(Health, ADeadWorkerIsNoticedAndTakenBack) {
  const ExpectLog expected("fleet.worker_unhealthy");
  StubWorker prefill, decode(StubWorker::answer_name("d"));
  std::optional<StubWorker> dying;
  dying.emplace();
  RouterOptions options = pd_options({&prefill}, {&decode, &*dying});
  options.disable_health_check = false;
  options.health_check_interval_secs = 0.05;
  options.health_failure_threshold = 2;
  const RunningRouter router(options);
  ASSERT_TRUE(wait_answer(router.port(), "/readiness", "\"healthy_workers\":3"));
  dying.reset();
  EXPECT_TRUE(wait_answer(router.port(), "/readiness", "\"healthy_workers\":2"));
  TestClient client(router.port());
  for (int i = 0; i < 4; ++i) EXPECT_EQ(client.post("/generate", "{}").status, 200);
  EXPECT_EQ(router.metric("kvlane_router_retries_total"), 0);
}

TEST(Health, ReadinessNeedsBothKinds) {
  const ExpectLog expected("fleet.worker_unhealthy");
  StubWorker prefill, decode;
  decode.stop();
  RouterOptions options = pd_options({&prefill}, {&decode});
  options.disable_health_check = false;
  options.health_check_interval_secs = 0.05;
  const RunningRouter router(options);
  ASSERT_TRUE(wait_answer(router.port(), "/readiness", "\"healthy_workers\":1"));
  TestClient client(router.port());
  EXPECT_EQ(client.call("GET", "/readiness").status, 503);
  EXPECT_EQ(client.call("GET", "/health").status, 200);
  EXPECT_EQ(client.call("GET", "/liveness").status, 200);
  EXPECT_EQ(client.call("HEAD", "/health").status, 200);
}

TEST(Answers, OfTheRouterItself) {
  StubWorker prefill(StubWorker::answer_name("p")), decode(StubWorker::answer_name("d"));
  RouterOptions options = pd_options({&prefill}, {&decode});
  options.prometheus_port = 0;
  options.bootstrap_port = 0;
  const RunningRouter router(options);
  TestClient client(router.port());
  EXPECT_EQ(client.call("GET", "/v1/models").body, "{\"name\":\"p\"}");
  EXPECT_EQ(client.call("GET", "/get_model_info").body, "{\"name\":\"p\"}");
  EXPECT_EQ(client.call("GET", "/health_generate").status, 200);
  EXPECT_EQ(decode.requests("/health_generate").size(), 1u);
  EXPECT_EQ(prefill.requests("/health_generate").size(), 1u);
  EXPECT_EQ(client.post("/abort_request", "{\"rid\":\"x\"}").status, 200);
  EXPECT_EQ(decode.requests("/abort_request")[0].body, "{\"rid\":\"x\"}");
  ASSERT_EQ(client.post("/generate", "{}").status, 200);
  EXPECT_TRUE(client.call("GET", "/metrics").has("\nkvlane_router_answers_2xx_total 3\n"));
  TestClient metrics(router->prometheus_port());
  EXPECT_TRUE(metrics.call("GET", "/metrics").has("# TYPE kvlane_router_requests_total counter"));
  TestClient bootstrap(router->bootstrap_port());
  EXPECT_EQ(bootstrap.call("GET", "/health").body, "OK");
}

TEST(Answers, FanOutNamesTheWorkerThatFailed) {
  StubWorker prefill, decode;
  decode.set_script([](StubPeer& peer, const StubRequest&) { peer.answer(500, "no"); });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  const TestAnswer answer = client.post("/flush_cache", "");
  EXPECT_EQ(answer.status, 503);
  EXPECT_TRUE(answer.has("{\"url\":\"" + decode.url() + "\",\"status\":500}")) << answer.body;
}

}  // namespace
}  // namespace kvl::test
