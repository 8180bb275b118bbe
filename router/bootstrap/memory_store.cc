// Ordered maps: keys by name, leases by deadline.
#include "router/bootstrap/memory_store.h"

#include <utility>

namespace kvl::bootstrap {

Result<LeaseId> MemoryStore::grant_now(std::uint32_t ttl_ms) {
  expire();
  if (leases_.size() >= records_max_) return Status{Code::exhausted, "too many leases"};
  LeaseId id = 0;
  while (id == 0 || leases_.contains(id)) id = random_() >> 1;  // 63 bits: fits any JSON reader
  Lease lease;
  lease.ttl_ns = std::int64_t{ttl_ms} * 1'000'000;
  lease.deadline_ns = clock_.now_ns() + lease.ttl_ns;
  deadlines_.emplace(lease.deadline_ns, id);
  leases_.emplace(id, std::move(lease));
  return id;
}

Status MemoryStore::keep_alive_now(LeaseId id) {
  expire();
  const auto lease = leases_.find(id);
  if (lease == leases_.end()) return {Code::not_found, "the lease has ended"};
  deadlines_.erase({lease->second.deadline_ns, id});
  lease->second.deadline_ns = clock_.now_ns() + lease->second.ttl_ns;
  deadlines_.emplace(lease->second.deadline_ns, id);
  return {};
}

Status MemoryStore::revoke_now(LeaseId id) {
  expire();
  const auto lease = leases_.find(id);
  if (lease == leases_.end()) return {Code::not_found, "the lease has ended"};
  end(lease);
  return {};
}

void MemoryStore::end(std::unordered_map<LeaseId, Lease>::iterator lease) {
  for (const std::string& key : lease->second.keys) values_.erase(key);
  deadlines_.erase({lease->second.deadline_ns, lease->first});
  leases_.erase(lease);
}

void MemoryStore::leave_lease(const std::string& key, LeaseId id) {
  const auto lease = leases_.find(id);
  if (lease != leases_.end()) lease->second.keys.erase(key);
}

Status MemoryStore::put_now(std::string_view key, std::string value, LeaseId id,
                            std::uint64_t expected) {
  expire();
  const auto lease = leases_.find(id);
  if (id != kNoLease && lease == leases_.end()) return {Code::not_found, "the lease has ended"};
  auto at = values_.find(key);
  const std::uint64_t revision = at == values_.end() ? 0 : at->second.revision;
  if (revision != expected) return {Code::aborted, "the key has changed meanwhile"};
  if (at == values_.end()) {
    if (values_.size() >= records_max_) return {Code::exhausted, "too many records"};
    at = values_.emplace(std::string(key), Value{}).first;
  } else if (at->second.lease != id) {
    leave_lease(at->first, at->second.lease);
  }
  at->second = {std::move(value), ++revision_, id};
  if (id != kNoLease) lease->second.keys.insert(at->first);
  return {};
}

Result<std::optional<StoredValue>> MemoryStore::get(std::string_view key) {
  expire();
  const auto at = values_.find(key);
  if (at == values_.end()) return std::optional<StoredValue>{};
  return std::optional<StoredValue>{{at->first, at->second.value, at->second.revision}};
}

Result<std::vector<StoredValue>> MemoryStore::list(std::string_view prefix) {
  expire();
  std::vector<StoredValue> found;
  for (auto at = values_.lower_bound(prefix); at != values_.end(); ++at) {
    if (!at->first.starts_with(prefix)) break;
    found.push_back({at->first, at->second.value, at->second.revision});
  }
  return found;
}

void MemoryStore::erase(std::string_view key, Done done) {
  expire();
  const auto at = values_.find(key);
  if (at != values_.end()) {
    leave_lease(at->first, at->second.lease);
    values_.erase(at);
  }
  done({});
}

void MemoryStore::expire() {
  const std::int64_t now = clock_.now_ns();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    end(leases_.find(deadlines_.begin()->second));
  }
}

}  // namespace kvl::bootstrap
