// The rendezvous service: kvlane's own protocol (kvcache/bootstrap/README.md) and SGLang's
// bootstrap HTTP protocol on one port. Runs alone or inside the router's process.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kvl/config.h"
#include "kvl/metrics.h"
#include "kvl/security.h"
#include "kvl/status.h"

namespace kvl {

struct BootstrapServerOptions {
  std::string host = "0.0.0.0";
  std::uint16_t port = 8998;  // 0: any free port, see BootstrapServer::port()
  std::uint32_t lease_min_ms = 1000;
  std::uint32_t lease_max_ms = 600000;
  // How long a room's data-parallel rank (SGLang's /register_dp_rank) is kept.
  std::uint32_t dp_rank_ttl_ms = 120000;
  std::uint32_t max_connections = 4096;
  std::uint32_t max_connections_per_address = 0;   // 0: no limit of its own
  double max_requests_per_second_per_address = 0;  // beyond: 429; 0: no limit
  double header_timeout_secs = 30;                 // for a request's head, then its body
  double idle_timeout_secs = 75;
  std::uint64_t records_max = 65536;  // ranks, leases and rooms each; beyond: 503, nothing changed

  // memory: what is registered is gone with this process, and registered again by its owners.
  // etcd: several servers share what is registered there.
  std::string store = "memory";
  std::string etcd_endpoints;            // "http://a:2379,http://b:2379", members of one cluster
  std::string etcd_prefix = "/kvlane/";  // of every key; one service per prefix
  std::string etcd_user;                 // "": etcd asks for none
  std::string etcd_password_file;        // its password, one line; or etcd_password
  std::string etcd_password;             // from the environment only
  std::uint32_t etcd_timeout_ms = 1500;  // of one call, over all members
  // PEM files, for endpoints with https: what etcd must show (none: the machine's authorities), and
  // what it is shown.
  std::string etcd_ca_cert_path, etcd_client_cert_path, etcd_client_key_path;
  std::uint32_t etcd_probe_ms = 1000;  // how often etcd is asked whether it is there

  // PEM files. With a certificate the port speaks TLS and nothing else.
  std::string tls_cert_path, tls_key_path;
  std::string tls_client_ca_path;  // clients must show a certificate that it signed
  bool tls_allow_1_2 = false;

  // Who may use it. With a secret, kvlane's protocol and /metrics need the token made from it
  // (kvl/http_token.h); SGLang's protocol has no place for one, and is refused unless
  // sglang_without_secret says otherwise. A host beyond loopback needs a secret,
  // tls_client_ca_path, or `insecure`.
  Secrets secrets;
  bool insecure = false;
  bool sglang_without_secret = false;
};

// The settings "bootstrap.*" of the struct above, one row per field.
std::span<const Setting> bootstrap_settings();

// What open() asks of files and of the host before it binds a port; etcd's as well. permission,
// not_found, invalid_argument; `error` (optional) receives the sentence for people.
Status check_security(const BootstrapServerOptions& options, std::string* error = nullptr);

// One thread of its own serves the port. open() returns once the port is bound; error codes:
// invalid_argument (host), permission (a host beyond loopback without a secret), unavailable (port
// in use; `error` receives the sentence for people).
class BootstrapServer {
 public:
  static Result<std::unique_ptr<BootstrapServer>> open(const BootstrapServerOptions& options,
                                                       std::string* error = nullptr);
  virtual ~BootstrapServer() = default;  // stops, joins

  virtual std::uint16_t port() const = 0;
  // Answers what is in flight, then closes; returns at once. Any thread.
  virtual void stop() = 0;
  // Reads certificates and keys anew; connections from now on show them. On an error what was in
  // force stays; `error` (optional) receives the sentence. Any thread.
  virtual Status reload_tls(std::string* error = nullptr) = 0;
  virtual void visit_metrics(MetricVisitor& visitor) const = 0;

 protected:
  BootstrapServer() = default;
  BootstrapServer(const BootstrapServer&) = delete;
  BootstrapServer& operator=(const BootstrapServer&) = delete;
};

}  // namespace kvl
