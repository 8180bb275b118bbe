// The store in this process's memory: gone with it, which engines answer by registering again.
#pragma once

#include <map>
#include <random>
#include <set>
#include <unordered_map>

#include "kvl/clock.h"
#include "router/bootstrap/store.h"

namespace kvl::bootstrap {

class MemoryStore final : public Store {
 public:
  // `records_max` bounds keys and leases each. Lease ids are random: nobody guesses another's.
  MemoryStore(const Clock& clock, std::uint64_t seed, std::uint64_t records_max)
      : clock_(clock), random_(seed), records_max_(records_max) {}

  // Every call is done before it returns.
  void grant(std::uint32_t ttl_ms, Granted done) override { done(grant_now(ttl_ms)); }
  void keep_alive(LeaseId lease, Done done) override { done(keep_alive_now(lease)); }
  void revoke(LeaseId lease, Done done) override { done(revoke_now(lease)); }
  void put(std::string_view key, std::string value, LeaseId lease, std::uint64_t expected,
           Done done) override {
    done(put_now(key, std::move(value), lease, expected));
  }
  void erase(std::string_view key, Done done) override;
  Result<std::optional<StoredValue>> get(std::string_view key) override;
  Result<std::vector<StoredValue>> list(std::string_view prefix) override;
  void expire() override;
  std::size_t size() const override { return values_.size(); }
  StoreHealth health() const override { return {.kind = "memory"}; }
  void visit_metrics(MetricVisitor&) const override {}

 private:
  Result<LeaseId> grant_now(std::uint32_t ttl_ms);
  Status keep_alive_now(LeaseId lease);
  Status revoke_now(LeaseId lease);
  Status put_now(std::string_view key, std::string value, LeaseId lease, std::uint64_t expected);
  void leave_lease(const std::string& key, LeaseId lease);
  struct Lease {
    std::int64_t ttl_ns = 0, deadline_ns = 0;
    std::set<std::string> keys;
  };
  struct Value {
    std::string value;
    std::uint64_t revision = 0;
    LeaseId lease = 0;
  };
  void end(std::unordered_map<LeaseId, Lease>::iterator lease);

  const Clock& clock_;
  std::mt19937_64 random_;
  const std::uint64_t records_max_;
  std::uint64_t revision_ = 0;
  std::map<std::string, Value, std::less<>> values_;
  std::unordered_map<LeaseId, Lease> leases_;
  std::set<std::pair<std::int64_t, LeaseId>> deadlines_;  // the next lease to end first
};

}  // namespace kvl::bootstrap
