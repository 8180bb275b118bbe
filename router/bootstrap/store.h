// What the rendezvous keeps its records in: keys and values under leases, as etcd has them, so that
// a cluster of stores can take the place of the one in memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/status.h"

namespace kvl::bootstrap {

using LeaseId = std::uint64_t;

struct StoredValue {
  std::string key, value;
  std::uint64_t revision = 0;  // changes with every put of the key; never 0
};

// Errors of every call: unavailable when the store cannot be reached. One thread at a time.
class Store {
 public:
  virtual ~Store() = default;

  // Keys put under the lease live until it ends. exhausted.
  virtual Result<LeaseId> grant(std::uint32_t ttl_ms) = 0;
  // Starts the lease's time anew. not_found when it has ended.
  virtual Status keep_alive(LeaseId lease) = 0;
  // Ends the lease and deletes its keys. not_found.
  virtual Status revoke(LeaseId lease) = 0;

  // Only when the key's revision is `expected` (0: it does not exist); else aborted. The key moves
  // to `lease`. not_found: no such lease. exhausted.
  virtual Status put(std::string_view key, std::string value, LeaseId lease,
                     std::uint64_t expected) = 0;
  virtual Result<std::optional<StoredValue>> get(std::string_view key) = 0;
  virtual Result<std::vector<StoredValue>> list(std::string_view prefix) = 0;  // in order of keys
  virtual Status erase(std::string_view key) = 0;  // ok as well when it does not exist

  // Ends the leases whose time is over. Calls above do it themselves; this is for the idle time.
  virtual void expire() = 0;
  virtual std::size_t size() const = 0;  // keys, for metrics
};

}  // namespace kvl::bootstrap
