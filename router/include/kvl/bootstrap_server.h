// The rendezvous service: kvlane's own protocol (kvcache/bootstrap/README.md) and SGLang's
// bootstrap HTTP protocol on one port. Runs alone or inside the router's process.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kvl/config.h"
#include "kvl/metrics.h"
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
  std::uint32_t max_connections_per_address = 0;  // 0: no limit of its own
  double header_timeout_secs = 30;                // for a request's head, then its body
  double idle_timeout_secs = 75;
  std::uint64_t records_max = 65536;  // ranks, leases and rooms each; beyond: 503, nothing changed
};

// The settings "bootstrap.*" of the struct above, one row per field.
std::span<const Setting> bootstrap_settings();

// One thread of its own serves the port. open() returns once the port is bound; error codes:
// invalid_argument (host), unavailable (port in use; `error` receives the sentence for people).
class BootstrapServer {
 public:
  static Result<std::unique_ptr<BootstrapServer>> open(const BootstrapServerOptions& options,
                                                       std::string* error = nullptr);
  virtual ~BootstrapServer() = default;  // stops, joins

  virtual std::uint16_t port() const = 0;
  // Answers what is in flight, then closes; returns at once. Any thread.
  virtual void stop() = 0;
  virtual void visit_metrics(MetricVisitor& visitor) const = 0;

 protected:
  BootstrapServer() = default;
  BootstrapServer(const BootstrapServer&) = delete;
  BootstrapServer& operator=(const BootstrapServer&) = delete;
};

}  // namespace kvl
