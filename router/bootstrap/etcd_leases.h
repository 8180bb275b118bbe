// The leases of the ranks that renew here. A renewal is answered at once, and etcd is told behind
// it: the lease's time is kept here as well, so that a rank which goes on renewing outlives any
// silence of etcd. A lease that etcd has ended all the same is granted again under its number when
// its rank renews the next time, and its keys are put back, unless somebody else has them by then.
// A rank that has left, perhaps by another server, never renews: nothing brings it back.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "kvl/clock.h"
#include "kvl/metrics.h"
#include "router/bootstrap/etcd_cache.h"
#include "router/bootstrap/etcd_client.h"

namespace kvl::bootstrap::etcd {

class Leases {
 public:
  // `key_of` makes etcd's key of one of the cache's.
  using KeyOf = std::function<std::string(std::string_view)>;
  Leases(Client& client, Cache& cache, const Clock& clock, KeyOf key_of)
      : client_(client), cache_(cache), clock_(clock), key_of_(std::move(key_of)) {}

  std::size_t size() const { return leases_.size(); }
  // Its rank has renewed in time.
  bool alive(LeaseId id) const;
  // Granted by etcd, or found there: it is looked after here from now on.
  void keep(LeaseId id, std::uint32_t ttl_ms);
  // The rank renewed: false when the lease is not kept here, or its time was over.
  bool renew(LeaseId id);
  // Not looked after any more; true when it was.
  bool forget(LeaseId id) { return leases_.erase(id) != 0; }

  // etcd has ended the lease: its rank renews, or its time runs out here.
  void lost(LeaseId id);
  // Whether etcd is there: while it is not, nothing is sent.
  void set_reachable(bool reachable);
  // The cluster is another one: all are granted again.
  void lose_all();
  // Forgets leases whose ranks have stopped; true when one of them was lost, so that the cache may
  // hold keys which etcd does not.
  bool expire();

  Counter restored_total;

 private:
  struct Lease {
    std::uint32_t ttl_ms = 0;
    std::int64_t deadline_ns = 0;
    bool calling = false;  // one call at a time
    bool due = false;      // renewed since the last call began
    bool lost = false;
  };
  struct Restore;

  void pump();
  void send(LeaseId id);
  void restore(LeaseId id, const Lease& lease);
  void put_back(const std::shared_ptr<Restore>& work);
  void called(LeaseId id, bool done);

  Client& client_;
  Cache& cache_;
  const Clock& clock_;
  const KeyOf key_of_;
  std::map<LeaseId, Lease> leases_;
  std::size_t calling_ = 0;
  bool reachable_ = false;
  bool pumping_ = false;
};

}  // namespace kvl::bootstrap::etcd
