// What the rendezvous keeps its records in: keys and values under leases, as etcd has them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/metrics.h"
#include "kvl/status.h"

namespace kvl::bootstrap {

using LeaseId = std::uint64_t;
constexpr LeaseId kNoLease = 0;

struct StoredValue {
  std::string key, value;
  std::uint64_t revision = 0;  // grows with every put of any key; never 0
};

// How much of what the store answers can be relied on.
struct StoreHealth {
  std::string_view kind;      // "memory", "etcd"
  bool shared = false;        // other servers see the same records
  bool loaded = true;         // false: nothing is known yet; get() and list() fail
  bool reachable = true;      // false: what is known here is served, nothing new is accepted
  std::int64_t stale_ms = 0;  // since the records were last known to be current
};

// Belongs to one thread. Reading answers at once from what is known here; what changes something
// says later, or before it returns, how it ended: exactly once, within the store's own deadline,
// from the same thread. Errors of every call: unavailable when the store cannot be reached.
class Store {
 public:
  using Done = std::function<void(const Status&)>;
  using Granted = std::function<void(const Result<LeaseId>&)>;
  virtual ~Store() = default;

  // Keys put under the lease live until it ends. exhausted.
  virtual void grant(std::uint32_t ttl_ms, Granted done) = 0;
  // Starts the lease's time anew. not_found when it has ended.
  virtual void keep_alive(LeaseId lease, Done done) = 0;
  // Ends the lease and deletes its keys. not_found.
  virtual void revoke(LeaseId lease, Done done) = 0;

  // Only when the key's revision is `expected` (0: it does not exist); else aborted, and get() has
  // learned what is there. The key moves to `lease` (kNoLease: it stays until it is erased).
  // not_found: no such lease. exhausted. Once it is ok, get() and list() show it.
  virtual void put(std::string_view key, std::string value, LeaseId lease, std::uint64_t expected,
                   Done done) = 0;
  virtual void erase(std::string_view key, Done done) = 0;  // ok as well when it does not exist

  virtual Result<std::optional<StoredValue>> get(std::string_view key) = 0;
  virtual Result<std::vector<StoredValue>> list(std::string_view prefix) = 0;  // in order of keys

  // Ends the leases whose time is over. Calls above do it themselves; this is for the idle time.
  virtual void expire() = 0;
  virtual std::size_t size() const = 0;  // keys
  virtual StoreHealth health() const = 0;
  virtual void visit_metrics(MetricVisitor& visitor) const = 0;  // any thread
};

}  // namespace kvl::bootstrap
