// Servers over one etcd cluster, with their clients: what one knows the others know, restarts,
// outages as they are seen from outside, TLS, and options that are wrong.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "kvl/bootstrap_client.h"
#include "kvl/bootstrap_server.h"
#include "tests/router/etcd/etcd_cluster.h"
#include "tests/router/etcd/store_rig.h"
#include "tests/router/support/test_client.h"
#include "tests/router/tls/test_certs.h"
#include "tests/support/log_guard.h"
#include "tests/tools/bench/program.h"

namespace kvl::bootstrap::test {
namespace {

using kvl::test::EtcdCluster;
using kvl::test::ExpectLog;
using kvl::test::TestClient;

class EtcdServers : public ::testing::Test {
 protected:
  BootstrapServerOptions options(std::uint16_t port = 0) const {
    BootstrapServerOptions out;
    out.host = "127.0.0.1";
    out.port = port;
    out.store = "etcd";
    out.etcd_endpoints = cluster_->urls();
    out.etcd_probe_ms = 100;
    out.etcd_timeout_ms = 3000;
    return out;
  }
  std::unique_ptr<BootstrapServer> serve(std::uint16_t port = 0) const {
    std::string error;
    auto server = BootstrapServer::open(options(port), &error);
    EXPECT_TRUE(server.ok()) << error;
    EXPECT_TRUE(eventually([&] {
      return TestClient((*server)->port()).call("GET", "/health").has("\"status\":\"ok\"");
    }));
    return *std::move(server);
  }
  static std::unique_ptr<BootstrapClient> client_of(const BootstrapServer& server) {
    return *BootstrapClient::open({.url = "http://127.0.0.1:" + std::to_string(server.port()),
                                   .timeout_ms = 20000,
                                   .lease_ms = 3000});
  }
  static RankRecord rank(std::uint32_t tp_rank, std::uint64_t epoch = 5) {
    RankRecord record;
    record.cluster = "c";
    record.instance = "i";
    record.tp_rank = tp_rank;
    record.tp_size = 2;
    record.address = "127.0.0.1:1";
    record.epoch = epoch;
    record.layout.assign(10000, std::byte{7});
    return record;
  }
  void SetUp() override {
    if (!EtcdCluster::installed()) GTEST_SKIP() << "etcd is not installed: tools/setup.sh --tests";
    cluster_ = std::make_unique<EtcdCluster>();
  }
  const ExpectLog etcd_{"bootstrap.etcd_"};
  std::unique_ptr<EtcdCluster> cluster_;
};

TEST_F(EtcdServers, ARankOfOneServerIsFoundAtTheOther) {
  const ExpectLog expected("bootstrap.refused");
  const auto a = serve(), b = serve();
  const auto at_a = client_of(*a), at_b = client_of(*b);
  ASSERT_TRUE(at_a->register_rank(rank(0)).ok());
  ASSERT_TRUE(at_b->register_rank(rank(1)).ok());
  const auto found = at_b->wait_for_instance("c", "i", 40000);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->size(), 2u);
  EXPECT_EQ(found->front().layout, rank(0).layout);
  EXPECT_EQ(at_a->wait_for_instance("c", "i", 40000)->size(), 2u);
  // A zombie is refused wherever it comes to.
  EXPECT_EQ(at_b->register_rank(rank(0, 4)).code(), Code::permission);
  EXPECT_TRUE(at_b->register_rank(rank(0, 6)).ok());
}

TEST_F(EtcdServers, SglangsRanksAndRoomsAreSharedToo) {
  const auto a = serve(), b = serve();
  for (int tp = 0; tp < 2; ++tp) {
    const std::string body = "{\"attn_tp_size\":2,\"attn_tp_rank\":" + std::to_string(tp) +
                             ",\"rank_ip\":\"h\",\"rank_port\":" + std::to_string(70 + tp) + "}";
    TestClient client((tp == 0 ? a : b)->port());
    client.send("PUT /route HTTP/1.1\r\nHost: h\r\nContent-Length: " + std::to_string(body.size()) +
                "\r\n\r\n" + body);
    EXPECT_EQ(client.read_answer().status, 200);
  }
  const std::string one =
      "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=1&target_pp_rank=0";
  for (const auto* server : {&a, &b}) {
    EXPECT_TRUE(eventually(
        [&] { return TestClient((*server)->port()).call("GET", one).has("\"rank_port\":71"); }));
  }
  TestClient(a->port()).post("/register_dp_rank", R"({"bootstrap_room":77,"dp_rank":3})");
  EXPECT_TRUE(eventually([&] {
    return TestClient(b->port()).post("/query_dp_ranks", R"({"bootstrap_rooms":[77]})").body ==
           R"({"77":3})";
  }));
}

TEST_F(EtcdServers, AServerThatRestartsKnowsWhatItKnew) {
  const ExpectLog renewal("bootstrap.renewal_failed");
  auto server = serve();
  const std::uint16_t port = server->port();
  const auto client = client_of(*server);
  const auto lease = client->register_rank(rank(0));
  ASSERT_TRUE(lease.ok());
  server.reset();
  server = serve(port);
  TestClient raw(port);
  EXPECT_TRUE(raw.call("GET", "/kvlane/v1/ranks?cluster=c&instance=i").has("127.0.0.1:1"));
  // The lease goes on under its number: nobody had to register again.
  EXPECT_TRUE(client->unregister_rank(*lease).ok());
  EXPECT_EQ(client->ranks("c", "i").code(), Code::not_found);
}

TEST_F(EtcdServers, AnOutageIsSaidInHealthMetricsAndAnswers) {
  const ExpectLog renewal("bootstrap.renewal_failed");
  const auto server = serve();
  const auto client = client_of(*server);
  ASSERT_TRUE(client->register_rank(rank(0)).ok());
  cluster_->kill(0);
  TestClient raw(server->port());
  EXPECT_TRUE(eventually([&] { return raw.call("GET", "/health").has("\"status\":\"stale\""); }));
  EXPECT_EQ(raw.call("GET", "/health").status, 200);
  const auto ranks = raw.call("GET", "/kvlane/v1/ranks?cluster=c&instance=i");
  EXPECT_TRUE(ranks.has("\"stale_ms\":") && ranks.has("127.0.0.1:1")) << ranks.body;
  EXPECT_TRUE(raw.call("GET", "/metrics").has("\nkvlane_bootstrap_etcd_reachable 0\n"));
  EXPECT_TRUE(client->ranks("c", "i").ok());
  EXPECT_EQ(client->register_rank(rank(1)).code(), Code::unavailable);
  cluster_->start(0);
  EXPECT_TRUE(eventually([&] { return raw.call("GET", "/health").has("\"status\":\"ok\""); }));
  EXPECT_TRUE(eventually([&] { return client->register_rank(rank(1)).ok(); }));
  EXPECT_EQ(client->failed_renewals(), 0u) << "renewals never waited for etcd";
}

TEST_F(EtcdServers, AProgramThatIsKilledIsBackWithWhatItKnew) {
  const ExpectLog renewal("bootstrap.renewal_failed");
  const std::string command =
      "bootstrap --host 127.0.0.1 --store etcd --etcd-endpoints " + cluster_->urls() + " --port ";
  const auto port_of = [](kvl::test::Program& program) {
    const std::string line = program.read_line();
    return static_cast<std::uint16_t>(std::atoi(line.c_str() + line.rfind(':') + 1));
  };
  const auto health = [](std::uint16_t port) { return TestClient(port).call("GET", "/health"); };
  std::unique_ptr<BootstrapClient> client;
  std::uint16_t port = 0;
  {
    kvl::test::Program first(command + "0");
    port = port_of(first);
    ASSERT_NE(port, 0);
    ASSERT_TRUE(eventually([&] { return health(port).has("\"status\":\"ok\""); }));
    client = *BootstrapClient::open(
        {.url = "http://127.0.0.1:" + std::to_string(port), .timeout_ms = 20000});
    ASSERT_TRUE(client->register_rank(rank(0)).ok());
  }  // killed
  EXPECT_EQ(client->ranks("c", "i").code(), Code::unavailable);
  kvl::test::Program second(command + std::to_string(port));
  ASSERT_EQ(port_of(second), port);
  EXPECT_TRUE(eventually([&] { return client->ranks("c", "i").ok(); }));
  client.reset();
  second.signal(SIGTERM);
  EXPECT_EQ(second.wait(), 0) << second.errors;
}

TEST(EtcdTls, WithCertificatesOfBothSides) {
  if (!EtcdCluster::installed()) GTEST_SKIP() << "etcd is not installed: tools/setup.sh --tests";
  const ExpectLog tls("http.tls_failed"), etcd("bootstrap.etcd_");
  const kvl::test::TestCerts certs;
  certs.authority("other");
  EtcdCluster cluster(
      {.tls_cert = certs.cert("server"), .tls_key = certs.key("server"), .tls_ca = certs.ca()});
  const auto serve = [&](const std::string& ca, const std::string& client) {
    BootstrapServerOptions options;
    options.host = "127.0.0.1";
    options.port = 0;
    options.store = "etcd";
    options.etcd_endpoints = cluster.urls();
    options.etcd_ca_cert_path = certs.cert(ca);
    if (!client.empty()) {
      options.etcd_client_cert_path = certs.cert(client);
      options.etcd_client_key_path = certs.key(client);
    }
    std::string error;
    auto server = BootstrapServer::open(options, &error);
    EXPECT_TRUE(server.ok()) << error;
    return *std::move(server);
  };
  const auto health = [](const BootstrapServer& server) {
    return TestClient(server.port()).call("GET", "/health");
  };
  const auto good = serve("ca", "client");
  EXPECT_TRUE(eventually([&] { return health(*good).has("\"status\":\"ok\""); }));
  EXPECT_TRUE(good->reload_tls().ok());
  for (const auto& [ca, client] : {std::pair("ca", ""), std::pair("other", "client")}) {
    const auto refused = serve(ca, client);
    EXPECT_TRUE(eventually([&] {
      return TestClient(refused->port())
          .call("GET", "/metrics")
          .has("\nkvlane_bootstrap_etcd_outages_total 1\n");
    }));
    EXPECT_EQ(health(*refused).status, 503);
  }
}

TEST(EtcdOptions, WrongOnesAreNamed) {
  const auto wrong = [](BootstrapServerOptions options, const std::string& word) {
    options.host = "127.0.0.1";
    options.port = 0;
    std::string error;
    EXPECT_FALSE(BootstrapServer::open(options, &error).ok());
    EXPECT_NE(error.find(word), std::string::npos) << error;
  };
  wrong({.store = "redis"}, "redis");
  wrong({.store = "etcd"}, "etcd_endpoints");
  wrong({.store = "etcd", .etcd_endpoints = "http://a:1,nonsense://b"}, "nonsense://b");
  wrong({.store = "etcd", .etcd_endpoints = "http://a:1", .etcd_user = "u"}, "password");
  wrong({.store = "etcd", .etcd_endpoints = "http://a:1", .etcd_prefix = ""}, "etcd_prefix");
  wrong({.store = "etcd",
         .etcd_endpoints = "http://a:1",
         .etcd_user = "u",
         .etcd_password_file = "/nonexistent/password"},
        "/nonexistent/password");
  const std::string file = testing::TempDir() + "kvlane_password." + std::to_string(::getpid());
  std::ofstream(file) << "word\n";
  ::chmod(file.c_str(), 0644);
  wrong({.store = "etcd",
         .etcd_endpoints = "http://a:1",
         .etcd_user = "u",
         .etcd_password_file = file},
        "chmod 600");
  ::unlink(file.c_str());
  wrong({.store = "etcd", .etcd_endpoints = "https://a:1", .etcd_ca_cert_path = "/nonexistent.pem"},
        "/nonexistent.pem");
}

}  // namespace
}  // namespace kvl::bootstrap::test
