// The rendezvous in virtual time: the product's Service over a watched store on one simulated node,
// and the client's calls and lease keeper on every rank's.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kvcache/bootstrap/lease_keeper.h"
#include "kvl/clock.h"
#include "router/bootstrap/memory_store.h"
#include "router/bootstrap/service.h"
#include "tools/sim/scenario.h"
#include "transport/sim/sim_world.h"

namespace kvl::simulation {

using Violate = std::function<void(const std::string&)>;

// A store that checks what the product's in memory does, before each of its calls returns: no lease
// lives on after its time, nothing is read under an ended lease, no rank's epoch goes back while it
// is known.
class WatchedStore final : public bootstrap::Store {
 public:
  WatchedStore(const Clock& clock, std::uint64_t seed, Violate violate)
      : clock_(clock), store_(clock, seed, 4096), violate_(std::move(violate)) {}

  void grant(std::uint32_t ttl_ms, Granted done) override;
  void keep_alive(bootstrap::LeaseId lease, Done done) override;
  void revoke(bootstrap::LeaseId lease, Done done) override;
  void put(std::string_view key, std::string value, bootstrap::LeaseId lease,
           std::uint64_t expected, Done done) override;
  Result<std::optional<bootstrap::StoredValue>> get(std::string_view key) override;
  Result<std::vector<bootstrap::StoredValue>> list(std::string_view prefix) override;
  void erase(std::string_view key, Done done) override { store_.erase(key, std::move(done)); }
  void expire() override { store_.expire(); }
  std::size_t size() const override { return store_.size(); }
  bootstrap::StoreHealth health() const override { return store_.health(); }
  void visit_metrics(MetricVisitor& visitor) const override { store_.visit_metrics(visitor); }

 private:
  struct Lease {
    std::int64_t ttl_ns = 0, ends_ns = 0;
  };
  struct Key {
    bootstrap::LeaseId lease = 0;
    std::uint64_t epoch = 0;
  };
  bool lives(bootstrap::LeaseId lease) const;
  void check_put(std::string_view key, bootstrap::LeaseId lease, std::uint64_t epoch);
  void check_read(const bootstrap::StoredValue& value);

  const Clock& clock_;
  bootstrap::MemoryStore store_;
  const Violate violate_;
  std::map<bootstrap::LeaseId, Lease> leases_;
  std::map<std::string, Key, std::less<>> keys_;
};

class RendezvousServer {
 public:
  RendezvousServer(sim::SimWorld& world, sim::NodeId node, const Clock& clock,
                   const Scenario& scenario, Violate violate);

  bool up() const { return service_ != nullptr; }
  sim::NodeId node() const { return node_; }
  void start();
  void crash();
  // What a call's arrival does; the answer travels back by itself.
  bootstrap::HttpAnswer handle(const bootstrap::Call& call);

 private:
  sim::SimWorld& world_;
  const sim::NodeId node_;
  const Clock& clock_;
  const BootstrapServerOptions options_;
  const Violate violate_;
  std::uint64_t lives_ = 0;
  std::unique_ptr<WatchedStore> store_;
  std::unique_ptr<bootstrap::Service> service_;
};

// One rank's side: registers, renews, looks up. Dies with its process.
class RendezvousClient {
 public:
  using Answered = std::function<void(const Result<bootstrap::HttpAnswer>&)>;

  RendezvousClient(sim::SimWorld& world, RendezvousServer& server, sim::NodeId node,
                   const Clock& clock, RankRecord record, std::uint32_t lease_ms);

  void step();
  bool registered() const { return registered_; }
  // Complete instances only; null: not known (yet). Asks when what it has is older than `age_ns`.
  const std::vector<RankRecord>* find(const std::string& instance, std::int64_t age_ns);
  // Something was wrong with it: ask again.
  void forget(const std::string& instance) { instances_.erase(instance); }

 private:
  struct Pending {
    std::int64_t deadline_ns = 0;
    Answered answered;
  };
  struct Instance {
    std::vector<RankRecord> ranks;
    std::int64_t asked_ns = INT64_MIN / 2, known_ns = INT64_MIN / 2;
  };
  void call(const bootstrap::Call& call, Answered answered);
  void keep(bootstrap::LeaseKeeper::Step step);
  void on_answer(std::uint64_t id, const Result<bootstrap::HttpAnswer>& answer);

  sim::SimWorld& world_;
  RendezvousServer& server_;
  const sim::Port port_;
  const Clock& clock_;
  const RankRecord record_;
  const std::uint32_t lease_ms_;
  bootstrap::LeaseKeeper keeper_;
  // Answers find their client by this; it is empty when the process has died.
  std::shared_ptr<RendezvousClient*> self_ = std::make_shared<RendezvousClient*>(this);
  std::map<std::uint64_t, Pending> pending_;
  std::uint64_t calls_ = 0;
  std::int64_t register_ns_ = 0;
  bool registering_ = false, registered_ = false;
  std::map<std::string, Instance> instances_;

 public:
  ~RendezvousClient() { *self_ = nullptr; }
};

}  // namespace kvl::simulation
