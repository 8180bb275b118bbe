// What goes wrong between a client, a prefill and a decode worker, one test per row: the answer
// comes at once, the other leg is ended, another pair is tried where that can help.
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "tests/router/support/router_fixture.h"

namespace kvl::test {
namespace {

constexpr auto kAtOnce = std::chrono::seconds(5);  // generous for a loaded machine; peers: 1800 s
const std::string kBody = R"({"text":"hello","rid":"r-1"})";
const std::string kStreamBody = R"({"text":"hello","rid":"r-1","stream":true})";

StubWorker::Script answer_status(int status) {
  return
      [status](StubPeer& peer, const StubRequest&) { peer.answer(status, R"({"own":"words"})"); };
}
StubWorker::Script reset_connection() {
  return [](StubPeer& peer, const StubRequest&) { peer.reset(); };
}

class Timer {
 public:
  bool at_once() const { return std::chrono::steady_clock::now() - start_ < kAtOnce; }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Prefill fails in one way or another while decode waits for pages that will never come.
class PrefillFails : public ::testing::TestWithParam<bool> {
 protected:
  const std::string& body() const { return GetParam() ? kStreamBody : kBody; }
};
INSTANTIATE_TEST_SUITE_P(JsonAndStream, PrefillFails, ::testing::Bool());

TEST_P(PrefillFails, WithAnErrorTheAnswerComesAtOnce) {  // A, B
  Gate decode_closed;
  StubWorker prefill(answer_status(500)), decode(wait_for_close(decode_closed));
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  const Timer timer;
  const TestAnswer answer = client.post("/generate", body());
  EXPECT_TRUE(timer.at_once());
  EXPECT_EQ(answer.status, 500);
  EXPECT_EQ(answer.body, R"({"own":"words"})");
  EXPECT_TRUE(decode_closed.wait());
  ASSERT_TRUE(decode.wait_requests(1, "/abort_request"));
  EXPECT_EQ(decode.requests("/abort_request").front().body, R"({"rid":"r-1"})");
}

TEST_P(PrefillFails, WithAnErrorAnotherPrefillIsTried) {  // A, B
  Gate first_closed;
  StubWorker bad(answer_status(500)), good(StubWorker::answer_name("p"));
  StubWorker decode;
  decode.set_script([&](StubPeer& peer, const StubRequest& request) {
    if (request.connection > 1) return peer.answer(200, "{\"name\":\"d\"}");
    if (peer.wait_closed()) first_closed.open();
    peer.close();
  });
  const RunningRouter router(pd_options({&bad, &good}, {&decode}));
  TestClient client(router.port());
  const TestAnswer answer = client.post("/generate", body());
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "{\"name\":\"d\"}");
  EXPECT_TRUE(first_closed.wait());
  EXPECT_EQ(router.metric("kvlane_router_retries_total"), 1);
  ASSERT_TRUE(decode.wait_requests(2, "/generate"));
  const auto calls = decode.requests("/generate");
  EXPECT_NE(calls[0].body, calls[1].body) << "each attempt has a room of its own";
  // The abort of the first attempt came before the second attempt with the same request id: on the
  // second connection, as the first one was closed.
  std::vector<std::string> paths;
  for (const StubRequest& request : decode.requests()) {
    if (request.connection > 1) paths.push_back(request.path);
  }
  EXPECT_EQ(paths, (std::vector<std::string>{"/abort_request", "/generate"}));
}

TEST(PrefillIsSilent, ADecodeWorkerThatSaysSoIsNotBlamed) {
  const ExpectLog expected("fleet.worker_unhealthy");
  Gate first_closed;
  StubWorker silent(wait_for_close(first_closed)), good(StubWorker::answer_name("p"));
  StubWorker decode([](StubPeer& peer, const StubRequest& request) {
    if (request.connection > 1) return peer.answer(200, "{\"name\":\"d\"}");
    peer.send(
        "HTTP/1.1 503 Service Unavailable\r\nX-Kvlane-At-Fault: peer\r\n"
        "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}");
  });
  RouterOptions options = pd_options({&silent, &good}, {&decode});
  options.health_failure_threshold = 1;
  const RunningRouter router(options);
  TestClient client(router.port());
  const TestAnswer answer = client.post("/generate", kBody);
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "{\"name\":\"d\"}") << "the same decode worker, with another prefill";
  EXPECT_TRUE(first_closed.wait());
  const std::string workers = client.call("GET", "/workers").body;
  const auto healthy = [&](const StubWorker& worker) {
    const std::size_t at = workers.find(worker.url() + "\"");
    const std::size_t state = workers.find("\"is_healthy\":", at);
    return workers.substr(state + 13, 4) == "true";
  };
  EXPECT_FALSE(healthy(silent)) << workers;
  EXPECT_TRUE(healthy(good)) << workers;
  EXPECT_TRUE(healthy(decode)) << workers;
}

TEST_P(PrefillFails, WithAResetAnotherPrefillIsTried) {  // C
  StubWorker bad(reset_connection()), good(StubWorker::answer_name("p"));
  Gate closed;
  StubWorker decode;
  decode.set_script([&](StubPeer& peer, const StubRequest& request) {
    if (request.connection > 1) return peer.answer(200, "{}");
    if (peer.wait_closed()) closed.open();
    peer.close();
  });
  const RunningRouter router(pd_options({&bad, &good}, {&decode}));
  TestClient client(router.port());
  EXPECT_EQ(client.post("/generate", body()).status, 200);
  EXPECT_TRUE(closed.wait());
  EXPECT_TRUE(good.wait_requests(1, "/generate"));
}

TEST_P(PrefillFails, WithAResetAndNoOtherTheAnswerComesAtOnce) {  // C
  Gate closed;
  StubWorker prefill(reset_connection()), decode(wait_for_close(closed));
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  const Timer timer;
  const TestAnswer answer = client.post("/generate", body());
  EXPECT_TRUE(timer.at_once());
  EXPECT_EQ(answer.status, 502);
  EXPECT_TRUE(answer.has("\"error\":{")) << answer.body;
  EXPECT_TRUE(answer.has("prefill worker " + prefill.url())) << answer.body;
  EXPECT_TRUE(closed.wait());
}

TEST_P(PrefillFails, BecauseNobodyListensTheOtherOneIsTaken) {
  const ExpectLog expected("fleet.worker_unhealthy");
  StubWorker dead, good, decode(StubWorker::answer_name("d"));
  dead.stop();
  const RunningRouter router(pd_options({&dead, &good}, {&decode}));
  TestClient client(router.port());
  for (int i = 0; i < 4; ++i) EXPECT_EQ(client.post("/generate", body()).status, 200);
  EXPECT_EQ(router.metric("kvlane_router_retries_total"), 1) << "the dead one is remembered";
  EXPECT_TRUE(good.wait_requests(4, "/generate"));
}

TEST(Fault, PrefillsOwnRefusalIsRelayedAndNotRetried) {
  Gate closed;
  StubWorker one(answer_status(400)), two(answer_status(400)), decode(wait_for_close(closed));
  const RunningRouter router(pd_options({&one, &two}, {&decode}));
  TestClient client(router.port());
  const TestAnswer answer = client.post("/generate", kBody);
  EXPECT_EQ(answer.status, 400);
  EXPECT_EQ(answer.body, R"({"own":"words"})");
  EXPECT_TRUE(closed.wait());
  EXPECT_EQ(one.requests("/generate").size() + two.requests("/generate").size(), 1u);
}

class DecodeFails : public PrefillFails {};
INSTANTIATE_TEST_SUITE_P(JsonAndStream, DecodeFails, ::testing::Bool());

TEST_P(DecodeFails, WithAnErrorAnotherDecodeIsTried) {  // D
  Gate prefill_closed;
  StubWorker prefill, bad(answer_status(503)), good(StubWorker::answer_name("d"));
  prefill.set_script([&](StubPeer& peer, const StubRequest& request) {
    if (request.connection > 1) return peer.answer(200, "{}");
    if (peer.wait_closed()) prefill_closed.open();
    peer.close();
  });
  const RunningRouter router(pd_options({&prefill}, {&bad, &good}));
  TestClient client(router.port());
  const TestAnswer answer = client.post("/generate", body());
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "{\"name\":\"d\"}");
  EXPECT_TRUE(prefill_closed.wait());
  EXPECT_TRUE(prefill.wait_requests(1, "/abort_request"));
}

TEST_P(DecodeFails, WithAnErrorAndNoOtherTheAnswerComesAtOnce) {  // D
  Gate closed;
  StubWorker prefill(wait_for_close(closed)), decode(answer_status(429));
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  const Timer timer;
  const TestAnswer answer = client.post("/v1/completions", body());
  EXPECT_TRUE(timer.at_once());
  EXPECT_EQ(answer.status, 429);
  EXPECT_EQ(answer.body, R"({"own":"words"})");
  EXPECT_TRUE(closed.wait());
}

TEST_P(DecodeFails, WithAResetAnotherDecodeIsTried) {  // E
  StubWorker prefill, bad(reset_connection()), good(StubWorker::answer_name("d"));
  const RunningRouter router(pd_options({&prefill}, {&bad, &good}));
  TestClient client(router.port());
  EXPECT_EQ(client.post("/generate", body()).body, "{\"name\":\"d\"}");
}

TEST_P(DecodeFails, InTheMiddleOfAShortAnswerAnotherIsTried) {
  StubWorker prefill, good(StubWorker::answer_name("d")), bad;
  bad.set_script([](StubPeer& peer, const StubRequest&) {
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half\":");
    peer.close();
  });
  const RunningRouter router(pd_options({&prefill}, {&bad, &good}));
  TestClient client(router.port());
  EXPECT_EQ(client.post("/generate", body()).body, "{\"name\":\"d\"}");
}

TEST_P(DecodeFails, WithNonsenseAnotherIsTried) {
  StubWorker prefill, good(StubWorker::answer_name("d")), bad;
  bad.set_script([](StubPeer& peer, const StubRequest&) {
    peer.send("SSH-2.0-OpenSSH_9.2\r\n");
    peer.close();
  });
  const RunningRouter router(pd_options({&prefill}, {&bad, &good}));
  TestClient client(router.port());
  EXPECT_EQ(client.post("/generate", body()).body, "{\"name\":\"d\"}");
}

TEST(ClientLeaves, BothLegsOfAJsonRequestEnd) {  // F
  Gate prefill_closed, decode_closed;
  StubWorker prefill(wait_for_close(prefill_closed)), decode(wait_for_close(decode_closed));
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  ASSERT_TRUE(client.send_post("/generate", kBody));
  ASSERT_TRUE(prefill.wait_requests(1) && decode.wait_requests(1));
  client.close();
  EXPECT_TRUE(prefill_closed.wait());
  EXPECT_TRUE(decode_closed.wait());
  EXPECT_TRUE(prefill.wait_requests(1, "/abort_request"));
  EXPECT_TRUE(decode.wait_requests(1, "/abort_request"));
  EXPECT_EQ(router.metric("kvlane_router_client_gone_total"), 1);
}

TEST(ClientLeaves, BothLegsOfAStreamEnd) {  // G
  Gate prefill_closed, decode_closed;
  StubWorker prefill(wait_for_close(prefill_closed)), decode;
  decode.set_script([&](StubPeer& peer, const StubRequest&) {
    peer.begin_events();
    peer.event("1");
    if (peer.wait_closed()) decode_closed.open();
    peer.close();
  });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  ASSERT_TRUE(client.send_post("/generate", kStreamBody));
  ASSERT_TRUE(client.read_until("data: 1"));
  client.close();
  EXPECT_TRUE(prefill_closed.wait());
  EXPECT_TRUE(decode_closed.wait());
  EXPECT_TRUE(decode.wait_requests(1, "/abort_request"));
}

TEST(ClientLeaves, AListOfRequestIdsIsAbortedOneByOne) {
  Gate closed, other;
  StubWorker prefill(wait_for_close(closed)), decode(wait_for_close(other));
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  ASSERT_TRUE(client.send_post("/generate", R"({"text":["a","b"],"rid":["x\"1", "y"]})"));
  ASSERT_TRUE(prefill.wait_requests(1) && decode.wait_requests(1));
  client.close();
  ASSERT_TRUE(prefill.wait_requests(2, "/abort_request"));
  std::set<std::string> bodies;
  for (const StubRequest& request : prefill.requests("/abort_request")) bodies.insert(request.body);
  EXPECT_EQ(bodies, (std::set<std::string>{R"({"rid":"x\"1"})", R"({"rid":"y"})"}));
}

TEST(DecodeDiesMidStream, TheStreamEndsWithAnErrorEvent) {  // H
  StubWorker prefill, decode;
  decode.set_script([](StubPeer& peer, const StubRequest&) {
    peer.begin_events();
    peer.event("1");
    peer.send("20\r\ndata: cut off in the m");
    peer.close();
  });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  const TestAnswer answer = client.post("/generate", kStreamBody);
  EXPECT_EQ(answer.status, 200);
  EXPECT_TRUE(answer.complete);
  EXPECT_TRUE(answer.body.starts_with("data: 1\n\ndata: cut off in the m\n\ndata: {\"error\":{"))
      << answer.body;
  EXPECT_TRUE(answer.body.ends_with("\n\ndata: [DONE]\n\n")) << answer.body;
  // The connection carries another request.
  decode.set_script(StubWorker::answer_name("d"));
  EXPECT_EQ(client.post("/generate", kBody).status, 200);
}

TEST(DecodeDiesMidStream, BeforeItsFirstEventAnotherIsTried) {
  StubWorker prefill, good(StubWorker::answer_name("d")), bad;
  bad.set_script([](StubPeer& peer, const StubRequest&) {
    peer.begin_events();
    peer.close();
  });
  const RunningRouter router(pd_options({&prefill}, {&bad, &good}));
  TestClient client(router.port());
  EXPECT_EQ(client.post("/generate", kStreamBody).body, "{\"name\":\"d\"}");
}

TEST(DecodeDiesMidStream, AnAnswerThatIsNoEventStreamIsCutVisibly) {
  StubWorker prefill, decode;
  decode.set_script([](StubPeer& peer, const StubRequest&) {
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    peer.close();
  });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  const TestAnswer answer = client.post("/generate", kBody);
  EXPECT_EQ(answer.status, 200);
  EXPECT_FALSE(answer.complete);
}

TEST(PrefillIsLate, DecodesEventsAreRelayedAtOnce) {  // I
  Gate prefill_may_answer, seen;
  StubWorker prefill, decode;
  prefill.set_script([&](StubPeer& peer, const StubRequest&) {
    prefill_may_answer.wait();
    peer.answer(200, "{}");
  });
  decode.set_script([&](StubPeer& peer, const StubRequest&) {
    peer.begin_events();
    peer.event("1");
    seen.wait();
    peer.event("2");
    peer.end_events();
  });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  ASSERT_TRUE(client.send_post("/generate", kStreamBody));
  EXPECT_TRUE(client.read_until("data: 1"));
  seen.open();
  const TestAnswer answer = client.read_answer();
  EXPECT_TRUE(answer.complete);
  EXPECT_EQ(answer.body, "data: 1\n\ndata: 2\n\n");
  prefill_may_answer.open();
}

TEST(PrefillIsLate, ItsConnectionIsUsedAgainAfterItsAnswer) {
  Gate may_answer;
  StubWorker prefill, decode(StubWorker::answer_name("d"));
  prefill.set_script([&](StubPeer& peer, const StubRequest&) {
    may_answer.wait();
    peer.answer(200, std::string(300000, 'x'));
  });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  EXPECT_EQ(client.post("/generate", kBody).status, 200);
  EXPECT_TRUE(client.call("GET", "/workers").has("\"in_flight\":1"));
  may_answer.open();
  ASSERT_TRUE(router.wait_idle());
  EXPECT_EQ(client.post("/generate", kBody).status, 200);
  EXPECT_EQ(prefill.connections(), 1);
}

TEST(Deadline, ARequestThatTakesTooLongEndsOnBothLegs) {
  Gate prefill_closed, decode_closed;
  StubWorker prefill(wait_for_close(prefill_closed)), decode(wait_for_close(decode_closed));
  RouterOptions options = pd_options({&prefill}, {&decode});
  options.request_timeout_secs = 0.2;
  const RunningRouter router(options);
  TestClient client(router.port());
  const TestAnswer answer = client.post("/generate", kBody);
  EXPECT_EQ(answer.status, 504);
  EXPECT_TRUE(prefill_closed.wait());
  EXPECT_TRUE(decode_closed.wait());
}

TEST(Deadline, AStreamThatTakesTooLongEndsWithAnErrorEvent) {
  Gate closed;
  StubWorker prefill, decode;
  decode.set_script([&](StubPeer& peer, const StubRequest&) {
    peer.begin_events();
    peer.event("1");
    if (peer.wait_closed()) closed.open();
    peer.close();
  });
  RouterOptions options = pd_options({&prefill}, {&decode});
  options.request_timeout_secs = 0.3;
  const RunningRouter router(options);
  TestClient client(router.port());
  const TestAnswer answer = client.post("/generate", kStreamBody);
  EXPECT_TRUE(answer.complete);
  EXPECT_TRUE(answer.has("data: {\"error\":{")) << answer.body;
  EXPECT_TRUE(closed.wait());
}

}  // namespace
}  // namespace kvl::test
