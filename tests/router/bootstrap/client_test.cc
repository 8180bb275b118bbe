// Client and service over a socket: registration, renewal, a service that restarts, garbage.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "kvl/bootstrap_client.h"
#include "kvl/bootstrap_server.h"
#include "tests/router/support/stub_worker.h"
#include "tests/router/support/test_client.h"
#include "tests/support/log_guard.h"

namespace kvl::test {
namespace {

std::unique_ptr<BootstrapServer> serve(std::uint16_t port = 0) {
  std::string error;
  auto server = BootstrapServer::open(
      {.host = "127.0.0.1", .port = port, .lease_min_ms = 30, .records_max = 1000}, &error);
  EXPECT_TRUE(server.ok()) << error;
  return *std::move(server);
}

std::unique_ptr<BootstrapClient> connect(std::uint16_t port, std::uint32_t lease_ms = 10000) {
  auto client = BootstrapClient::open({.url = "http://127.0.0.1:" + std::to_string(port),
                                       .timeout_ms = 5000,
                                       .lease_ms = lease_ms});
  EXPECT_TRUE(client.ok());
  return *std::move(client);
}

RankRecord rank(std::uint32_t tp_rank, std::uint32_t tp_size = 1) {
  RankRecord record;
  record.cluster = "c";
  record.instance = "127.0.0.1:9";
  record.tp_rank = tp_rank;
  record.tp_size = tp_size;
  record.address = "127.0.0.1:" + std::to_string(100 + tp_rank);
  record.epoch = 5;
  record.layout.assign(100000, std::byte{42});
  return record;
}

template <typename Condition>
bool eventually(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST(BootstrapClient, RegistersAndFinds) {
  const auto server = serve();
  const auto client = connect(server->port());
  EXPECT_TRUE(client->ping().ok());
  EXPECT_EQ(client->ranks("c", "127.0.0.1:9").code(), Code::not_found);
  const Result<std::uint64_t> lease = client->register_rank(rank(0));
  ASSERT_TRUE(lease.ok());
  const auto found = client->ranks("c", "127.0.0.1:9");
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->front().layout, rank(0).layout);
  EXPECT_EQ(client->ranks("other", "127.0.0.1:9").code(), Code::not_found);
  EXPECT_TRUE(client->unregister_rank(*lease).ok());
  EXPECT_EQ(client->unregister_rank(*lease).code(), Code::not_found);
  EXPECT_EQ(client->ranks("c", "127.0.0.1:9").code(), Code::not_found);
}

TEST(BootstrapClient, WaitsForAllRanksOfAnInstance) {
  const auto server = serve();
  const auto client = connect(server->port());
  ASSERT_TRUE(client->register_rank(rank(0, 2)).ok());
  EXPECT_EQ(client->wait_for_instance("c", "127.0.0.1:9", 50).code(), Code::timed_out);
  const auto other = connect(server->port());
  std::thread late([&] { EXPECT_TRUE(other->register_rank(rank(1, 2)).ok()); });
  EXPECT_EQ(client->wait_for_instance("c", "127.0.0.1:9", 20000)->size(), 2u);
  late.join();
}

TEST(BootstrapClient, TheEndOfAClientIsTheEndOfItsRegistrations) {
  const auto server = serve();
  const auto watcher = connect(server->port());
  {
    const auto client = connect(server->port());
    ASSERT_TRUE(client->register_rank(rank(0)).ok());
    ASSERT_TRUE(watcher->ranks("c", "127.0.0.1:9").ok());
  }
  EXPECT_EQ(watcher->ranks("c", "127.0.0.1:9").code(), Code::not_found);
}

TEST(BootstrapClient, ALeaseIsRenewedAndAnOldEpochRefused) {
  const test::ExpectLog expected("bootstrap.refused");
  const auto server = serve();
  const auto client = connect(server->port(), 900);
  ASSERT_TRUE(client->register_rank(rank(0)).ok());
  TestClient raw(server->port());
  EXPECT_TRUE(eventually([&] {
    const TestAnswer metrics = raw.call("GET", "/metrics");
    const std::size_t at = metrics.body.find("\nkvlane_bootstrap_renewals_total ");
    return at != std::string::npos && std::atoi(metrics.body.c_str() + at + 33) >= 4;
  }));
  EXPECT_TRUE(client->ranks("c", "127.0.0.1:9").ok()) << "several leases later it is still there";
  EXPECT_EQ(client->failed_renewals(), 0u);
  RankRecord zombie = rank(0);
  zombie.epoch = 4;
  EXPECT_EQ(client->register_rank(zombie).code(), Code::permission);
}

TEST(BootstrapClient, AServiceThatRestartsGetsTheRegistrationAgain) {
  const ExpectLog expected("bootstrap.renewal_failed");
  auto server = serve();
  const std::uint16_t port = server->port();
  const auto client = connect(port, 60);
  ASSERT_TRUE(client->register_rank(rank(0)).ok());
  server.reset();
  EXPECT_TRUE(eventually([&] { return client->failed_renewals() > 0; }));
  EXPECT_EQ(client->ranks("c", "127.0.0.1:9").code(), Code::unavailable);
  server = serve(port);
  EXPECT_TRUE(eventually([&] { return client->ranks("c", "127.0.0.1:9").ok(); }));
}

TEST(BootstrapClient, DeadlinesHold) {
  StubWorker silent([](StubPeer& peer, const StubRequest&) {
    peer.wait_closed();
    peer.close();
  });
  const auto client = BootstrapClient::open({.url = silent.url(), .timeout_ms = 50});
  EXPECT_EQ((*client)->ranks("c", "i").code(), Code::timed_out);
  EXPECT_EQ((*client)->register_rank(rank(0)).code(), Code::timed_out);
  StubWorker nonsense(
      [](StubPeer& peer, const StubRequest&) { peer.answer(200, "{\"surprise\":1}"); });
  const auto confused = BootstrapClient::open({.url = nonsense.url()});
  EXPECT_EQ((*confused)->ranks("c", "i").code(), Code::unsupported);
  EXPECT_EQ((*confused)->register_rank(rank(0)).code(), Code::corrupt);
  nonsense.set_script([](StubPeer& peer, const StubRequest&) {
    peer.send("\x01\x02\x03\x04 not http\r\n\r\n");
    peer.close();
  });
  EXPECT_EQ((*confused)->ranks("c", "i").code(), Code::corrupt);
  nonsense.stop();
  EXPECT_EQ((*confused)->ping().code(), Code::unavailable);
}

TEST(BootstrapClient, OptionsAreChecked) {
  EXPECT_EQ(BootstrapClient::open({.url = "nonsense"}).code(), Code::invalid_argument);
  EXPECT_EQ(BootstrapClient::open({.url = "http://h:1", .timeout_ms = 0}).code(),
            Code::invalid_argument);
  const auto client = connect(1);
  EXPECT_EQ(client->register_rank({}).code(), Code::invalid_argument);
}

TEST(BootstrapServer, GarbageIsRefusedAndCounted) {
  const auto server = serve();
  TestClient garbage(server->port());
  ASSERT_TRUE(garbage.send("\x05\x00\x03\x01garbage"));
  EXPECT_EQ(garbage.read_answer().status, 400);
  TestClient client(server->port());
  EXPECT_EQ(client.post("/kvlane/v1/register", "garbage").status, 400);
  EXPECT_EQ(client.call("GET", "/nowhere").status, 404);
  const TestAnswer metrics = client.call("GET", "/metrics");
  EXPECT_TRUE(metrics.has("\nkvlane_bootstrap_http_refused_total{cause=\"bad_request\"} 1\n"))
      << metrics.body;
  for (const char* cause : {"bad_request", "not_found"}) {
    EXPECT_TRUE(
        metrics.has("\nkvlane_bootstrap_refused_total{cause=\"" + std::string(cause) + "\"} 1\n"))
        << metrics.body;
  }
}

TEST(BootstrapServer, APortInUseIsNamed) {
  const auto server = serve();
  std::string error;
  EXPECT_EQ(BootstrapServer::open({.host = "127.0.0.1", .port = server->port()}, &error).code(),
            Code::unavailable);
  EXPECT_NE(error.find(std::to_string(server->port())), std::string::npos);
  EXPECT_EQ(BootstrapServer::open({.host = "not an address"}, &error).code(),
            Code::invalid_argument);
}

}  // namespace
}  // namespace kvl::test
