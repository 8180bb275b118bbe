// The rendezvous, seen from an engine: a rank registers where it can be reached and what its cache
// looks like; the other side looks the ranks of an instance up. Control plane: calls block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/status.h"
#include "kvl/tls.h"

namespace kvl {

// What an engine instance does. Texts on the wire: "prefill", "decode", "both".
enum class EngineRole : std::uint8_t { prefill, decode, both };

// "prefill", "decode" or "both".
std::string_view to_string(EngineRole role);

// One rank of one engine instance, as registered. Bounds: names and addresses at most 256 bytes,
// layout at most 1 MiB, sizes at most 4,096 with rank < size.
struct RankRecord {
  std::string cluster;  // name space; instances of different clusters never see each other
  // Names the engine instance; all its ranks use the same. A router hands decode the pair
  // bootstrap_host and bootstrap_port of the prefill that it chose: an instance that is named
  // "<bootstrap_host>:<bootstrap_port>" can be found by that pair alone.
  std::string instance;
  EngineRole role = EngineRole::both;
  std::uint32_t tp_rank = 0, tp_size = 1;
  std::uint32_t pp_rank = 0, pp_size = 1;
  std::uint32_t dp_rank = 0, dp_size = 1;
  std::string address;  // the engine's control address: "host:port" or "[v6 address]:port"
  // Grows with every start of this rank (for example the start time in microseconds). A register
  // with an older epoch than the service knows is refused: a zombie cannot push out its successor.
  std::uint64_t epoch = 0;
  std::vector<std::byte> layout;  // the cache's description; opaque to the rendezvous
};

struct BootstrapClientOptions {
  std::string url;                  // "http://host:port" or "https://host:port" of the service
  std::uint32_t timeout_ms = 2000;  // for each call: connect, send, answer together
  std::uint32_t lease_ms = 10000;   // a rank that stops renewing is forgotten after this time
  std::string token;                // kvl/http_token.h, signs where the service has a secret
  TlsFiles tls;                     // for https
};

// A connection-less client. All functions may be called from any thread; each blocks at most
// timeout_ms and opens its own connection. Leases are renewed by a thread of the client's own every
// third of lease_ms; a service that lost its memory (restart) gets the same registration again.
//
// Errors: invalid_argument (refused as malformed), permission (an older epoch;
// the token or a certificate is not accepted), unsupported (the
// service speaks another version), not_found (no such lease or instance), unavailable (nobody
// answers at the address), timed_out, corrupt (an answer that makes no sense).
class BootstrapClient {
 public:
  // Checks the URL only; the service need not be up yet.
  static Result<std::unique_ptr<BootstrapClient>> open(BootstrapClientOptions options);
  // Stops renewing and unregisters what is registered, each within timeout_ms, errors ignored.
  virtual ~BootstrapClient() = default;

  // Registers (or replaces, with the same or a newer epoch) a rank; returns its lease id.
  virtual Result<std::uint64_t> register_rank(const RankRecord& record) = 0;
  virtual Status unregister_rank(std::uint64_t lease) = 0;

  // The ranks of an instance that are registered now, in any order; not_found when there are none.
  virtual Result<std::vector<RankRecord>> ranks(std::string_view cluster,
                                                std::string_view instance) = 0;
  // Asks again until all tp_size * pp_size * dp_size ranks are there, at most wait_ms.
  virtual Result<std::vector<RankRecord>> wait_for_instance(std::string_view cluster,
                                                            std::string_view instance,
                                                            std::uint32_t wait_ms) = 0;
  // The service answers its health check.
  virtual Status ping() = 0;

  // Renewals that failed since open(): rises while the service is away.
  virtual std::uint64_t failed_renewals() const = 0;

 protected:
  BootstrapClient() = default;
  BootstrapClient(const BootstrapClient&) = delete;
  BootstrapClient& operator=(const BootstrapClient&) = delete;
};

}  // namespace kvl
