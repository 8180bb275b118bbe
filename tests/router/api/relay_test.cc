// What passes through: bytes untouched, connections used again, streams without gathering, limits.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <set>
#include <string>

#include "tests/router/support/router_fixture.h"

namespace kvl::test {
namespace {

// The body that a worker got, split at the fields that the router added.
struct Spliced {
  std::string before, host, after;
  std::uint64_t room = 0;
};
Spliced split(const std::string& body) {
  const std::size_t at = body.find("\"bootstrap_host\":");
  if (at == std::string::npos) return {};
  const std::size_t room = body.find("\"bootstrap_room\":", at) + 17;
  char* end = nullptr;
  Spliced out;
  out.room = std::strtoull(body.c_str() + room, &end, 10);
  out.before = body.substr(0, at);
  out.host = body.substr(at, room - 17 - at);
  out.after = end;
  return out;
}

TEST(Relay, BodyBytesReachBothWorkersUntouched) {
  StubWorker prefill, decode;
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  const std::string body =
      "{ \"unknown\" : 1.000 ,\"text\":\"a\\u0041 \xc3\xa9\", \"max_tokens\":5e0,\n\t\"rid\":\"x\" "
      "} \n";
  ASSERT_EQ(client.post("/generate", body, "X-Thing: kept\r\nTE: dropped\r\n").status, 200);
  ASSERT_TRUE(prefill.wait_requests(1));
  const std::size_t brace = body.rfind('}');
  for (StubWorker* worker : {&prefill, &decode}) {
    const auto requests = worker->requests("/generate");
    ASSERT_EQ(requests.size(), 1u);
    const Spliced spliced = split(requests[0].body);
    EXPECT_EQ(spliced.before, body.substr(0, brace) + ",");
    EXPECT_EQ(spliced.after, body.substr(brace));
    EXPECT_EQ(spliced.host, "\"bootstrap_host\":\"127.0.0.1\",\"bootstrap_port\":8998,");
    EXPECT_GT(spliced.room, 0u);
    EXPECT_LT(spliced.room, 1ull << 63);
    EXPECT_NE(requests[0].head.find("X-Thing: kept\r\n"), std::string::npos);
    EXPECT_NE(requests[0].head.find("Host: " + worker->url().substr(7) + "\r\n"),
              std::string::npos);
    EXPECT_EQ(requests[0].head.find("TE:"), std::string::npos);
  }
  EXPECT_EQ(prefill.requests()[0].body, decode.requests()[0].body) << "one room for both";
}

TEST(Relay, AnEmptyObjectGetsNoComma) {
  StubWorker prefill, decode;
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  ASSERT_EQ(client.post("/generate", "{ }").status, 200);
  EXPECT_EQ(split(decode.requests()[0].body).before, "{ ");
}

TEST(Relay, RoomsAreFreshAndBatchesReserveAsManyAsTheyNeed) {
  StubWorker prefill, decode;
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  for (const char* body : {R"({"text":["a","b","c"],"sampling_params":{"n":2}})", R"({"text":"a"})",
                           R"({"prompt":"a","n":4})", R"({"text":"a"})"}) {
    ASSERT_EQ(client.post("/generate", body).status, 200);
  }
  const auto requests = decode.requests();
  const std::uint64_t first = split(requests[0].body).room;
  EXPECT_EQ(split(requests[1].body).room, first + 6);
  EXPECT_EQ(split(requests[2].body).room, first + 7);
  EXPECT_EQ(split(requests[3].body).room, first + 11);
}

TEST(Relay, ARequestIdIsGivenWhenAskedFor) {
  StubWorker prefill, decode;
  RouterOptions options = pd_options({&prefill}, {&decode});
  options.inject_rid = true;
  const RunningRouter router(options);
  TestClient client(router.port());
  ASSERT_EQ(client.post("/generate", R"({"text":"a"})").status, 200);
  ASSERT_EQ(client.post("/generate", R"({"text":"a","rid":"mine"})").status, 200);
  const auto requests = decode.requests();
  EXPECT_NE(requests[0].body.find(",\"rid\":\"kvl-"), std::string::npos);
  EXPECT_EQ(requests[1].body.find("kvl-"), std::string::npos);
}

TEST(Relay, ConnectionsAreUsedAgainOnBothSides) {
  StubWorker prefill, decode(StubWorker::answer_name("d"));
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(client.post("/generate", R"({"text":"a"})").status, 200);
    ASSERT_TRUE(router.wait_idle());
  }
  EXPECT_EQ(prefill.connections(), 1);
  EXPECT_EQ(decode.connections(), 1);
  EXPECT_EQ(router.metric("kvlane_router_connections_total"), 1);
}

TEST(Relay, RequestsInOnePacketAreAnsweredInOrder) {
  StubWorker prefill, decode;
  decode.set_script([](StubPeer& peer, const StubRequest& request) {
    peer.answer(200, request.body.substr(0, 12));
  });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  std::string all;
  for (int i = 0; i < 200; ++i) {
    const std::string body = "{\"text\":\"" + std::to_string(100 + i) + "\"}";
    all += "POST /generate HTTP/1.1\r\nContent-Length: " + std::to_string(body.size()) +
           "\r\n\r\n" + body + "GET /health HTTP/1.1\r\n\r\n";
  }
  ASSERT_TRUE(client.send(all));
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(client.read_answer().has("\"" + std::to_string(100 + i))) << i;
    ASSERT_EQ(client.read_answer().body, "OK") << i;
  }
}

TEST(Relay, LargeBodiesAndAnswersAreExact) {
  StubWorker prefill, decode;
  decode.set_script(
      [](StubPeer& peer, const StubRequest& request) { peer.answer(200, request.body); });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  for (const std::size_t size : {15u << 10, 16u << 10, 17u << 10, 64u << 10, 1u << 20, 5u << 20}) {
    std::string text(size, 'x');
    for (std::size_t i = 0; i < size; i += 7) text[i] = static_cast<char>('a' + i % 26);
    const TestAnswer answer = client.post("/generate", "{\"text\":\"" + text + "\"}");
    ASSERT_EQ(answer.status, 200);
    ASSERT_EQ(split(answer.body).before, "{\"text\":\"" + text + "\",") << size;
  }
}

TEST(Relay, AChunkedRequestBodyIsGatheredAndSentWithItsLength) {
  StubWorker prefill, decode;
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  std::string wire = "POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
  wire += "8\r\n{\"text\":\r\n1\r\n\"\r\n";
  const std::string text(100000, 'y');
  for (int i = 0; i < 5; ++i) wire += "186a0\r\n" + text + "\r\n";
  wire += "2;ext=1\r\n\"}\r\n0\r\n\r\n";
  ASSERT_TRUE(client.send(wire));
  ASSERT_EQ(client.read_answer().status, 200);
  EXPECT_EQ(split(decode.requests()[0].body).before.size(), 8 + 1 + 500000 + 1 + 1);
}

TEST(Relay, ExpectContinueIsAnswered) {
  StubWorker prefill, decode;
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  ASSERT_TRUE(
      client.send("POST /generate HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"));
  EXPECT_EQ(client.read_answer().status, 100);
  ASSERT_TRUE(client.send("{}"));
  EXPECT_EQ(client.read_answer().status, 200);
  EXPECT_EQ(decode.requests()[0].head.find("Expect"), std::string::npos);
}

TEST(Relay, AnOldClientGetsAnAnswerThatEndsWithTheConnection) {
  StubWorker prefill, decode;
  decode.set_script([](StubPeer& peer, const StubRequest&) {
    peer.begin_events();
    peer.event("1");
    peer.end_events();
  });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  ASSERT_TRUE(client.send("POST /generate HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}"));
  const TestAnswer answer = client.read_answer();
  EXPECT_EQ(answer.body, "data: 1\n\n");
  EXPECT_FALSE(answer.head_has("chunked"));
}

TEST(Relay, AWorkerThatEndsItsAnswerWithTheConnectionIsUnderstood) {
  StubWorker prefill, decode;
  decode.set_script([](StubPeer& peer, const StubRequest&) {
    peer.send("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
    peer.close();
  });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  for (int i = 0; i < 3; ++i) {
    const TestAnswer answer = client.post("/generate", "{\"stream\":true}");
    EXPECT_TRUE(answer.complete);
    EXPECT_EQ(answer.body, "data: 1\n\n");
  }
}

TEST(Relay, AWorkerMayCloseAfterEachAnswer) {
  StubWorker prefill, decode;
  decode.set_script([](StubPeer& peer, const StubRequest&) {
    peer.answer(200, "{}");
    peer.close();
  });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  for (int i = 0; i < 100; ++i) ASSERT_EQ(client.post("/generate", "{}").status, 200) << i;
}

// A client that does not read holds the worker back instead of filling the router's memory.
TEST(Relay, AClientThatDoesNotReadHoldsTheWorkerBack) {
  constexpr std::size_t kEvents = 4000, kEventBytes = 16 << 10;  // 64 MB
  std::atomic<std::size_t> sent{0};
  StubWorker prefill, decode;
  decode.set_script([&](StubPeer& peer, const StubRequest&) {
    peer.begin_events();
    const std::string event(kEventBytes, 'e');
    for (std::size_t i = 0; i < kEvents && peer.event(event); ++i) ++sent;
    peer.end_events();
  });
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient client(router.port());
  ASSERT_TRUE(client.send_post("/generate", "{\"stream\":true}"));
  ASSERT_TRUE(client.read_until("data: "));
  // Sent stops growing: twice the same count after many turns of other requests.
  TestClient other(router.port());
  std::size_t before = 0;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  do {
    before = sent;
    for (int i = 0; i < 200; ++i) ASSERT_EQ(other.call("GET", "/health").status, 200);
    ASSERT_LT(std::chrono::steady_clock::now(), end);
  } while (sent != before);
  EXPECT_LT(sent, kEvents / 2);
  const TestAnswer answer = client.read_answer();
  EXPECT_TRUE(answer.complete);
  EXPECT_EQ(answer.body.size(), kEvents * (kEventBytes + 8));
}

TEST(Refusals, AreSaidInJsonAndCounted) {
  StubWorker prefill, decode;
  RouterOptions options = pd_options({&prefill}, {&decode});
  options.max_payload_size = 1000;
  const RunningRouter router(options);
  TestClient client(router.port());
  EXPECT_EQ(client.post("/no/such/path", "{}").status, 404);
  EXPECT_EQ(client.call("GET", "/generate").status, 405);
  TestAnswer answer = client.post("/generate", "{\"a\":}");
  EXPECT_EQ(answer.status, 400);
  EXPECT_TRUE(answer.has("invalid JSON at byte 5")) << answer.body;
  answer = client.post("/generate", "{\"bootstrap_room\":1}");
  EXPECT_EQ(answer.status, 400);
  EXPECT_TRUE(answer.has("'bootstrap_room'")) << answer.body;
  answer = client.post("/generate", "{}", "X-Override-Bootstrap-Room: 5\r\n");
  EXPECT_EQ(answer.status, 400);
  EXPECT_EQ(router.metric("kvlane_router_bad_requests_total"), 3);
  EXPECT_EQ(client.post("/generate", std::string(1001, ' ')).status, 413);
  EXPECT_TRUE(client.closed());
  EXPECT_TRUE(prefill.requests().empty());
}

TEST(Refusals, GarbageIsRefusedCountedAndHarmless) {
  StubWorker prefill, decode;
  const RunningRouter router(pd_options({&prefill}, {&decode}));
  for (const char* garbage :
       {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "GET / FTP/1.1\r\n\r\n",
        "POST /generate HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "kjhasdkjhaskdjhaskdjhaskjdhaskjdhkasjhdkajhsd"}) {
    TestClient client(router.port());
    ASSERT_TRUE(client.send(garbage));
    const TestAnswer answer = client.read_answer();
    EXPECT_GE(answer.status, 400) << garbage;
    EXPECT_TRUE(client.closed());
  }
  EXPECT_EQ(router.metric("kvlane_router_http_refused_total"), 4);
  TestClient client(router.port());
  EXPECT_EQ(client.call("GET", "/health").status, 200);
}

TEST(Refusals, AClientThatIsTooSlowIsCutOff) {
  StubWorker prefill, decode;
  RouterOptions options = pd_options({&prefill}, {&decode});
  options.header_timeout_secs = 0.1;
  options.idle_timeout_secs = 0.1;
  const RunningRouter router(options);
  TestClient head(router.port()), body(router.port()), silent(router.port());
  ASSERT_TRUE(head.send("POST /gen"));
  ASSERT_TRUE(body.send("POST /generate HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"));
  EXPECT_EQ(head.read_answer().status, 408);
  EXPECT_EQ(body.read_answer().status, 408);
  EXPECT_TRUE(silent.closed());
}

TEST(Aggregated, OneWorkerGetsTheBodyAsItIs) {
  StubWorker one(StubWorker::answer_name("1")), two(StubWorker::answer_name("2"));
  RouterOptions options = in_front_of({&one, &two});
  options.policy = "round_robin";
  const RunningRouter router(options);
  TestClient client(router.port());
  std::map<std::string, int> names;
  for (int i = 0; i < 10; ++i) ++names[client.post("/v1/completions", "any bytes at all").body];
  EXPECT_EQ(names["{\"name\":\"1\"}"], 5);
  EXPECT_EQ(names["{\"name\":\"2\"}"], 5);
  EXPECT_EQ(one.requests()[0].body, "any bytes at all");
}

TEST(Stopping, FinishesWhatIsInFlight) {
  Gate go;
  StubWorker prefill, decode;
  decode.set_script([&](StubPeer& peer, const StubRequest&) {
    go.wait();
    peer.answer(200, "{}");
  });
  RunningRouter router(pd_options({&prefill}, {&decode}));
  TestClient busy(router.port()), idle(router.port());
  ASSERT_EQ(idle.call("GET", "/health").status, 200);
  ASSERT_TRUE(busy.send_post("/generate", "{}"));
  ASSERT_TRUE(decode.wait_requests(1));
  router->stop();
  EXPECT_TRUE(idle.closed());
  go.open();
  const TestAnswer answer = busy.read_answer();
  EXPECT_EQ(answer.status, 200);
  EXPECT_TRUE(answer.head_has("Connection: close"));
  busy.close();
  router.join();
}

TEST(Stopping, GraceHasAnEnd) {
  Gate closed;
  StubWorker prefill, decode(wait_for_close(closed));
  RouterOptions options = pd_options({&prefill}, {&decode});
  options.shutdown_grace_period_secs = 0.1;
  RunningRouter router(options);
  TestClient client(router.port());
  ASSERT_TRUE(client.send_post("/generate", "{}"));
  ASSERT_TRUE(decode.wait_requests(1));
  router->stop();
  router.join();
  EXPECT_TRUE(closed.wait());
}

TEST(Threads, ShareTheWorkers) {
  StubWorker prefill, decode;
  RouterOptions options = pd_options({&prefill}, {&decode});
  options.threads = 3;
  const RunningRouter router(options);
  std::set<std::uint64_t> rooms;
  for (int i = 0; i < 20; ++i) {
    TestClient client(router.port());
    for (int k = 0; k < 5; ++k) ASSERT_EQ(client.post("/generate", "{}").status, 200);
  }
  for (const StubRequest& request : decode.requests()) rooms.insert(split(request.body).room);
  EXPECT_EQ(rooms.size(), 100u);
}

TEST(Opening, FailsWithAReason) {
  StubWorker worker;
  std::string error;
  RouterOptions options = pd_options({&worker}, {&worker});
  options.host = "127.0.0.1";
  options.port = worker.port();
  EXPECT_EQ(Router::open(options, &error).code(), Code::unavailable);
  EXPECT_NE(error.find("127.0.0.1:" + std::to_string(worker.port())), std::string::npos) << error;
  options.threads = 2;
  EXPECT_EQ(Router::open(options, &error).code(), Code::unavailable);
  options.port = 0;
  options.policy = "psychic";
  EXPECT_EQ(Router::open(options, &error).code(), Code::invalid_argument);
  EXPECT_NE(error.find("psychic"), std::string::npos) << error;
  options.policy = "random";
  options.decode = {"ftp://127.0.0.1:1"};
  EXPECT_EQ(Router::open(options, &error).code(), Code::invalid_argument);
}

}  // namespace
}  // namespace kvl::test
