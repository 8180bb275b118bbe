// The HTTP front of a fleet: takes a client's request, chooses a prefill and a decode worker, sends
// both the same body plus the transfer session, and relays decode's answer as it comes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvl/bootstrap_server.h"
#include "kvl/config.h"
#include "kvl/metrics.h"
#include "kvl/status.h"

namespace kvl {

// A prefill worker. bootstrap_port is what both workers are told beside the host part of `url`;
// negative: "bootstrap_port": null.
struct PrefillWorker {
  std::string url;  // "http://host:port" or "https://host:port"; no path
  int bootstrap_port = -1;
};

// Defaults are those of sglang-router where it has the flag. Fields with a row in
// router_settings() are settings named "router.<field>"; the worker lists are flags only.
struct RouterOptions {
  bool pd_disaggregation = false;
  std::vector<PrefillWorker> prefill;
  std::vector<std::string> decode;
  std::vector<std::string> workers;  // without P/D: each request goes to one of these

  std::string host = "0.0.0.0";
  std::uint16_t port = 30000;   // 0: any free port, see Router::port()
  std::uint32_t threads = 1;    // loops, each with connection pools of its own
  std::string policy = "cost";  // see router/policy/policy.cc
  std::string prefill_policy;   // "": policy
  std::string decode_policy;    // "": policy

  // Tokens that the KV cache of a worker holds which does not tell it (SGLang's and kvlane's do):
  // what it was sent longer ago is taken as forgotten.
  std::uint64_t cache_tokens = 1 << 20;
  // For policies manual and consistent_hashing: headers that name a session, the first one counts;
  // after so long without a request one is forgotten.
  std::string session_headers = "X-SMG-Routing-Key,X-Session-ID,X-User-ID,X-Tenant-ID";
  double max_idle_secs = 14400;

  double request_timeout_secs = 1800;       // a whole request, with retries
  double connect_timeout_secs = 2;          // to one worker
  double header_timeout_secs = 30;          // for a client to send a request's head, then its body
  double idle_timeout_secs = 75;            // a kept-alive client connection without a request
  double shutdown_grace_period_secs = 180;  // after stop(), for requests in flight
  std::uint64_t max_payload_size = 512ull << 20;  // bytes of a request body; beyond: 413
  std::uint32_t max_connections = 16384;  // client connections per thread; beyond: not accepted
  std::uint32_t max_connections_per_address = 0;   // 0: no limit of its own
  double max_requests_per_second_per_address = 0;  // per thread; beyond: 429; 0: no limit
  std::uint64_t max_buffered_bytes = 1ull << 30;   // of large bodies, per loop
  std::uint32_t retry_max_retries = 5;  // other pairs tried before the first relayed byte

  double health_check_interval_secs = 5;
  double health_check_timeout_secs = 5;
  std::uint32_t health_failure_threshold = 3;
  std::uint32_t health_success_threshold = 1;
  std::string health_check_endpoint = "/health";
  bool disable_health_check = false;

  bool inject_rid = false;  // give requests without "rid" one, so that they can be aborted by it

  std::int32_t prometheus_port = -1;  // metrics on a port of their own as well; -1: none, 0: any
  std::int32_t bootstrap_port = -1;   // the rendezvous in this process as well; -1: none, 0: any
  BootstrapServerOptions bootstrap;   // of that one: host and port are those above

  // PEM files. With a certificate the port, and the metrics port, speak TLS and nothing else.
  std::string tls_cert_path, tls_key_path;
  std::string tls_client_ca_path;  // clients must show a certificate that it signed
  bool tls_allow_1_2 = false;

  // Who may use it. With a secret or API keys a request needs "Authorization: Bearer …": a key, or
  // the token made from the secret (kvl/http_token.h), which alone may change the fleet. Health
  // checks need nothing. A host beyond loopback needs one of them, tls_client_ca_path, or
  // `insecure`.
  Secrets secrets;
  std::string api_key_file;
  bool insecure = false;

  // To workers with https: what they must show (none: the machine's authorities), and what the
  // router shows them.
  std::string ca_cert_path, client_cert_path, client_key_path;
};

// The settings "router.*" of the struct above.
std::span<const Setting> router_settings();

// What open() asks of files and of the host before it binds a port: certificates, keys and API keys
// can be read, and a host beyond loopback knows its clients. permission, not_found,
// invalid_argument; `error` (optional) receives the sentence for people.
Status check_security(const RouterOptions& options, std::string* error = nullptr);

// Threads: open(), port(), stop() and visit_metrics() from any thread; run() from one. Memory per
// idle client connection stays below 64 KiB.
class Router {
 public:
  // Binds the ports. Error codes: invalid_argument (a URL, a policy, no workers), permission (a
  // host beyond loopback without a secret), unavailable (port in use). `error` (optional) receives
  // the sentence for people.
  static Result<std::unique_ptr<Router>> open(RouterOptions options, std::string* error = nullptr);
  virtual ~Router() = default;

  virtual std::uint16_t port() const = 0;
  virtual std::uint16_t prometheus_port() const = 0;  // 0: none
  virtual std::uint16_t bootstrap_port() const = 0;   // 0: none

  // Serves until stop(); the calling thread is the first loop.
  virtual void run() = 0;
  // Accept no more, finish what is in flight within the grace period, then run() returns.
  // A second call ends the grace period. Before run(): run() returns at once.
  virtual void stop() = 0;
  // Reads certificates and keys anew; connections from now on show them. On an error what was in
  // force stays; `error` (optional) receives the sentence. Any thread.
  virtual Status reload_tls(std::string* error = nullptr) = 0;
  virtual void visit_metrics(MetricVisitor& visitor) const = 0;

 protected:
  Router() = default;
  Router(const Router&) = delete;
  Router& operator=(const Router&) = delete;
};

}  // namespace kvl
