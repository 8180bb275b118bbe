// TLS of router, rendezvous and their clients, seen from outside: curl and openssl against living
// ports.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <string>

#include "kvl/bootstrap_client.h"
#include "kvl/bootstrap_server.h"
#include "kvl/http_token.h"
#include "kvl/router.h"
#include "tests/router/support/router_fixture.h"
#include "tests/router/support/stub_worker.h"
#include "tests/router/support/test_client.h"
#include "tests/router/tls/test_certs.h"
#include "tests/support/log_guard.h"

namespace kvl::test {
namespace {

const TestCerts& certs() {
  static const TestCerts instance;
  return instance;
}

struct Outcome {
  int status = 0;
  std::string output;
  bool has(const std::string& text) const { return output.find(text) != std::string::npos; }
};

// A shell command with both of its streams.
Outcome run(const std::string& command) {
  Outcome out;
  std::FILE* const pipe = ::popen((command + " 2>&1 </dev/null").c_str(), "r");
  std::array<char, 4096> bytes;
  std::size_t got = 0;
  while ((got = std::fread(bytes.data(), 1, bytes.size(), pipe)) > 0) {
    out.output.append(bytes.data(), got);
  }
  out.status = ::pclose(pipe);
  return out;
}

std::string url(std::uint16_t port, const std::string& path) {
  return "https://127.0.0.1:" + std::to_string(port) + path;
}

Outcome curl(std::uint16_t port, const std::string& path, const std::string& arguments) {
  return run("curl -sS -m 40 " + arguments + " " + url(port, path));
}

std::string trust() { return "--cacert " + certs().ca(); }
std::string show(const std::string& name) {
  return " --cert " + certs().cert(name) + " --key " + certs().key(name);
}

RouterOptions secure(RouterOptions options, bool mutual) {
  options.tls_cert_path = certs().cert("server");
  options.tls_key_path = certs().key("server");
  if (mutual) options.tls_client_ca_path = certs().ca();
  return options;
}

TEST(RouterTls, Speaks13AndNothingOlderOrPlain) {
  const StubWorker worker(StubWorker::answer_name("w"));
  const RunningRouter router(secure(in_front_of({&worker}), false));
  const Outcome answer = curl(router.port(), "/generate", trust() + " -d '{}'");
  EXPECT_EQ(answer.output, "{\"name\":\"w\"}");
  const std::string connect =
      "openssl s_client -connect 127.0.0.1:" + std::to_string(router.port());
  EXPECT_TRUE(run(connect).has("TLSv1.3"));
  EXPECT_TRUE(run(connect + " -tls1_2").has("alert protocol version"));
  TestClient plain(router.port());
  ASSERT_TRUE(plain.send("GET /health HTTP/1.1\r\nHost: h\r\n\r\n"));
  EXPECT_TRUE(plain.closed());
  EXPECT_EQ(plain.raw().find("HTTP"), std::string::npos);
  EXPECT_TRUE(router.wait_metric("kvlane_router_tls_failed_total", 2));
  EXPECT_TRUE(curl(router.port(), "/health", "").has("certificate"));
}

TEST(RouterTls, VersionTwoIsSpokenWhereItIsAllowed) {
  const StubWorker worker;
  RouterOptions options = secure(in_front_of({&worker}), false);
  options.tls_allow_1_2 = true;
  const RunningRouter router(options);
  EXPECT_EQ(curl(router.port(), "/health", trust() + " --tls-max 1.2").output, "OK");
  EXPECT_EQ(curl(router.port(), "/health", trust() + " --tlsv1.3").output, "OK");
}

TEST(RouterTls, ClientsMustShowACertificateOfTheAuthority) {
  certs().authority("other");
  certs().issue("stranger", "other", 2);
  certs().issue("late", "ca", -1);
  const StubWorker worker(StubWorker::answer_name("w"));
  const RunningRouter router(secure(in_front_of({&worker}), true));
  EXPECT_EQ(curl(router.port(), "/generate", trust() + show("client") + " -d '{}'").output,
            "{\"name\":\"w\"}");
  for (const std::string& shown : {std::string(), show("stranger"), show("late")}) {
    const Outcome refused = curl(router.port(), "/generate", trust() + shown + " -d '{}'");
    EXPECT_NE(refused.status, 0) << shown << refused.output;
    EXPECT_FALSE(refused.has("\"w\"")) << refused.output;
  }
  EXPECT_TRUE(router.wait_metric("kvlane_router_tls_failed_total", 3));
}

TEST(RouterTls, AHandshakeThatDoesNotEndIsCut) {
  const StubWorker worker;
  RouterOptions options = secure(in_front_of({&worker}), false);
  options.header_timeout_secs = 0.2;
  const RunningRouter router(options);
  TestClient silent(router.port()), half(router.port());
  ASSERT_TRUE(half.send(std::string("\x16\x03\x01\x02\x00\x01", 6)));  // and the rest never comes
  EXPECT_TRUE(silent.closed());
  EXPECT_TRUE(half.closed());
}

TEST(RouterTls, LargeBodiesAndStreamsPass) {
  StubWorker worker([](StubPeer& peer, const StubRequest& request) {
    peer.answer(200, "\"" + std::to_string(request.body.size()) + std::string(3 << 20, 'y') + "\"");
  });
  const RunningRouter router(secure(in_front_of({&worker}), false));
  const std::string body = testing::TempDir() + "kvlane_tls_body." + std::to_string(::getpid());
  std::ofstream(body) << "\"" << std::string(5 << 20, 'x') << "\"";
  const Outcome answer = curl(router.port(), "/generate", trust() + " --data-binary @" + body);
  std::filesystem::remove(body);
  EXPECT_EQ(answer.output.substr(0, 10), "\"" + std::to_string((5 << 20) + 2) + "yy");
  EXPECT_EQ(answer.output.size(), (std::size_t{3} << 20) + 9);
}

// Client, router, prefill and decode: TLS with certificates of both sides on every leg. The
// workers' ends are routers of their own.
TEST(RouterTls, APrefillDecodeRequestOverTlsOnAllLegs) {
  StubWorker prefill(StubWorker::answer_name("p"));
  // No decode answers before its prefill has been asked; one that did would end a prefill leg which
  // is still in its handshake.
  std::atomic<std::size_t> asked{0};
  const StubWorker decode([&](StubPeer& peer, const StubRequest& request) {
    const bool generate = request.path == "/generate";
    EXPECT_TRUE(!generate || prefill.wait_requests(++asked, "/generate"));
    StubWorker::answer_name("d")(peer, request);
  });
  const RunningRouter prefill_end(secure(in_front_of({&prefill}), true));
  const RunningRouter decode_end(secure(in_front_of({&decode}), true));
  RouterOptions options;
  options.pd_disaggregation = true;
  options.prefill = {{url(prefill_end.port(), ""), 8998}};
  options.decode = {url(decode_end.port(), "")};
  options.ca_cert_path = certs().ca();
  options.client_cert_path = certs().cert("client");
  options.client_key_path = certs().key("client");
  options.health_check_interval_secs = 0.05;
  const RunningRouter router(secure(options, true));
  const std::string ask = trust() + show("client");
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(curl(router.port(), "/generate", ask + " -d '{\"text\":\"x\"}'").output,
              "{\"name\":\"d\"}");
  }
  EXPECT_TRUE(prefill.wait_requests(3, "/generate"));
  EXPECT_NE(prefill.requests("/generate").front().body.find("\"bootstrap_room\":"),
            std::string::npos);
  EXPECT_TRUE(curl(router.port(), "/workers", ask).has("https://127.0.0.1:"));
}

TEST(RouterTls, AWorkerThatIsNotTrustedGetsNothing) {
  const ExpectLog tls("http.tls_failed"), state("fleet.worker_unhealthy");
  StubWorker stub;
  certs().authority("foreign");
  const RunningRouter worker(secure(in_front_of({&stub}), false));
  RouterOptions options;
  options.workers = {url(worker.port(), "")};
  options.disable_health_check = true;
  options.ca_cert_path = certs().cert("foreign");
  const RunningRouter router(options);
  TestClient client(router.port());
  EXPECT_GE(client.post("/generate", "{}").status, 502);
  EXPECT_TRUE(stub.requests().empty());
  // And one that speaks no TLS at all.
  options.workers = {"https://127.0.0.1:" + std::to_string(stub.port())};
  const RunningRouter confused(options);
  TestClient other(confused.port());
  EXPECT_GE(other.post("/generate", "{}").status, 502);
}

TEST(RouterTls, FilesAreCheckedWhenItOpens) {
  const StubWorker worker;
  certs().issue("expired", "ca", -1);
  certs().issue("open", "ca", 2);
  ::chmod(certs().key("open").c_str(), 0644);
  const auto wrong = [&](const std::string& cert, const std::string& key, const std::string& word) {
    RouterOptions options = in_front_of({&worker});
    options.host = "127.0.0.1";
    options.port = 0;
    options.tls_cert_path = cert;
    options.tls_key_path = key;
    std::string error;
    EXPECT_FALSE(Router::open(options, &error).ok());
    EXPECT_NE(error.find(word), std::string::npos) << error;
  };
  wrong(certs().cert("expired"), certs().key("expired"), "expired");
  wrong(certs().cert("open"), certs().key("open"), "chmod 600");
  wrong(certs().cert("server"), certs().key("client"), "does not belong");
  wrong("/nonexistent.pem", certs().key("server"), "/nonexistent.pem");
  wrong(certs().cert("server"), "", "both");
  wrong(certs().key("server"), certs().key("server"), "cannot be used");
}

TEST(RouterTls, CertificatesAreReadAnew) {
  const StubWorker worker;
  const std::string cert = certs().cert("rotated"), key = certs().key("rotated");
  certs().issue("rotated", "ca", 2);
  RouterOptions options = in_front_of({&worker});
  options.tls_cert_path = cert;
  options.tls_key_path = key;
  const RunningRouter router(options);
  EXPECT_EQ(curl(router.port(), "/health", trust()).output, "OK");
  certs().authority("next");
  certs().issue("rotated", "next", 2);
  EXPECT_EQ(curl(router.port(), "/health", trust()).output, "OK") << "not read yet";
  ASSERT_TRUE(router->reload_tls().ok());
  EXPECT_NE(curl(router.port(), "/health", trust()).status, 0);
  EXPECT_EQ(curl(router.port(), "/health", "--cacert " + certs().cert("next")).output, "OK");
  std::ofstream(cert) << "nonsense";
  std::string error;
  EXPECT_FALSE(router->reload_tls(&error).ok());
  EXPECT_NE(error.find(cert), std::string::npos) << error;
  EXPECT_EQ(curl(router.port(), "/health", "--cacert " + certs().cert("next")).output, "OK")
      << "what was in force stays";
}

std::unique_ptr<BootstrapServer> serve(BootstrapServerOptions options) {
  options.host = "127.0.0.1";
  options.port = 0;
  std::string error;
  auto server = BootstrapServer::open(options, &error);
  EXPECT_TRUE(server.ok()) << error;
  return *std::move(server);
}

RankRecord rank() {
  RankRecord record;
  record.instance = "i";
  record.address = "127.0.0.1:1";
  record.epoch = 1;
  record.layout.assign(200000, std::byte{9});
  return record;
}

TEST(RendezvousTls, ClientsAndServerShowCertificates) {
  const auto server = serve({.tls_cert_path = certs().cert("server"),
                             .tls_key_path = certs().key("server"),
                             .tls_client_ca_path = certs().ca()});
  const auto client_with = [&](TlsFiles files, const std::string& host = "127.0.0.1") {
    auto client =
        BootstrapClient::open({.url = "https://" + host + ":" + std::to_string(server->port()),
                               .timeout_ms = 20000,
                               .tls = std::move(files)});
    EXPECT_TRUE(client.ok());
    return *std::move(client);
  };
  const TlsFiles good{certs().cert("client"), certs().key("client"), certs().ca()};
  for (const char* host : {"127.0.0.1", "localhost"}) {
    const auto client = client_with(good, host);
    const auto lease = client->register_rank(rank());
    ASSERT_TRUE(lease.ok()) << lease.status().to_string();
    EXPECT_EQ((*client->ranks("", "i"))[0].layout, rank().layout);
    EXPECT_TRUE(client->unregister_rank(*lease).ok());
  }
  EXPECT_FALSE(client_with({.ca = certs().ca()})->ping().ok()) << "no certificate of its own";
  certs().authority("elsewhere");
  EXPECT_EQ(client_with({certs().cert("client"), certs().key("client"), certs().cert("elsewhere")})
                ->ping()
                .code(),
            Code::permission);
  EXPECT_FALSE(
      BootstrapClient::open({.url = "https://127.0.0.1:1", .tls = {.ca = "/nonexistent"}}).ok());
  // Plain HTTP to a TLS port, and TLS to a plain one.
  const auto plain = BootstrapClient::open(
      {.url = "http://127.0.0.1:" + std::to_string(server->port()), .timeout_ms = 20000});
  EXPECT_FALSE((*plain)->ping().ok());
  const auto open = serve({});
  const auto to_plain =
      BootstrapClient::open({.url = "https://127.0.0.1:" + std::to_string(open->port()),
                             .timeout_ms = 20000,
                             .tls = good});
  EXPECT_FALSE((*to_plain)->ping().ok());
}

const std::string kSecret = "a secret for tests, forty characters 012";

TEST(RendezvousSecret, TheTokenIsNeededButForHealthAndSglangsProtocol) {
  const ExpectLog refused("http.refused");
  const auto secrets = Secrets::parse(kSecret);
  const auto server = serve({.secrets = *secrets});
  const auto open = [&](const std::string& token) {
    return *BootstrapClient::open({.url = "http://127.0.0.1:" + std::to_string(server->port()),
                                   .timeout_ms = 20000,
                                   .token = token});
  };
  EXPECT_TRUE(open(http_token(kSecret))->register_rank(rank()).ok());
  EXPECT_EQ(open("")->register_rank(rank()).code(), Code::permission);
  EXPECT_EQ(open(http_token("another"))->ranks("", "i").code(), Code::permission);
  TestClient raw(server->port());
  EXPECT_EQ(raw.call("GET", "/health").status, 200);
  EXPECT_EQ(raw.call("GET", "/metrics").status, 401);
  EXPECT_EQ(raw.call("GET", "/route?prefill_dp_rank=-1").status, 401);
  const auto lenient = serve({.secrets = *secrets, .sglang_without_secret = true});
  TestClient other(lenient->port());
  EXPECT_EQ(other.call("GET", "/route?prefill_dp_rank=-1").status, 400);
  EXPECT_EQ(other.call("GET", "/kvlane/v1/instances").status, 401);
}

TEST(RouterSecret, KeysForClientsTheTokenForOperators) {
  const ExpectLog refused("http.refused");
  const StubWorker worker(StubWorker::answer_name("w"));
  const std::string keys = testing::TempDir() + "kvlane_keys." + std::to_string(::getpid());
  std::ofstream(keys) << "# clients\nkey-of-a-client-1\n";
  ::chmod(keys.c_str(), 0600);
  RouterOptions options = in_front_of({&worker});
  options.secrets = *Secrets::parse(kSecret);
  options.api_key_file = keys;
  const RunningRouter router(options);
  std::filesystem::remove(keys);
  const std::string key = "Authorization: Bearer key-of-a-client-1\r\n";
  const std::string token = "authorization: bearer " + http_token(kSecret) + "\r\n";
  const auto ask = [&](const std::string& method, const std::string& path,
                       const std::string& headers) {
    TestClient client(router.port());
    client.send(method + " " + path + " HTTP/1.1\r\nHost: h\r\n" + headers +
                "Content-Length: 2\r\n\r\n{}");
    return client.read_answer().status;
  };
  EXPECT_EQ(ask("GET", "/health", ""), 200);
  for (const char* wrong : {"", "Authorization: Bearer nonsense\r\n", "Authorization: Bearer \r\n",
                            "Authorization: key-of-a-client-1\r\n"}) {
    EXPECT_EQ(ask("POST", "/generate", wrong), 401) << wrong;
    EXPECT_EQ(ask("GET", "/metrics", wrong), 401) << wrong;
    EXPECT_EQ(ask("GET", "/workers", wrong), 401) << wrong;
  }
  EXPECT_EQ(ask("POST", "/generate", key), 200);
  EXPECT_EQ(ask("POST", "/generate", token), 200);
  EXPECT_EQ(ask("GET", "/metrics", key), 200);
  EXPECT_EQ(ask("GET", "/workers", key), 401);
  EXPECT_EQ(ask("GET", "/workers", token), 200);
  EXPECT_EQ(ask("POST", "/flush_cache", key), 401);
}

TEST(ListenersBeyondLoopback, NeedASecretOrSayInsecure) {
  const StubWorker worker;
  std::string error;
  RouterOptions router = in_front_of({&worker});
  router.host = "0.0.0.0";
  router.port = 0;
  EXPECT_EQ(Router::open(router, &error).code(), Code::permission);
  EXPECT_NE(error.find("router.host"), std::string::npos) << error;
  BootstrapServerOptions rendezvous{.host = "0.0.0.0", .port = 0};
  EXPECT_EQ(BootstrapServer::open(rendezvous, &error).code(), Code::permission);
  EXPECT_NE(error.find("bootstrap.host"), std::string::npos) << error;
  router.insecure = rendezvous.insecure = true;
  EXPECT_TRUE(Router::open(router, &error).ok()) << error;
  EXPECT_TRUE(BootstrapServer::open(rendezvous, &error).ok()) << error;
  rendezvous.insecure = false;
  rendezvous.secrets = *Secrets::parse(kSecret);
  EXPECT_TRUE(BootstrapServer::open(rendezvous, &error).ok()) << error;
}

}  // namespace
}  // namespace kvl::test
