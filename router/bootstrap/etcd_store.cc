// The store's calls. How the records are kept current is in etcd_sync.cc.
#include "router/bootstrap/etcd_store.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "router/bootstrap/etcd_wire.h"

namespace kvl::bootstrap {
namespace {

constexpr std::uint32_t kAdoptedTtlMs = 10000;  // of a lease whose time only etcd knows
constexpr Status kAway{Code::unavailable,
                       "etcd does not answer: what is known is served, new ranks must wait"};

}  // namespace

// Nothing new while etcd is known to be away: a rank is told at once instead of after a timeout.
Status EtcdStore::ready() const {
  if (stopping_) return {Code::aborted, "the server stops"};
  if (!loaded_) return {Code::unavailable, "the records have not come from etcd yet"};
  return reachable_ ? Status{} : kAway;
}

void EtcdStore::grant(std::uint32_t ttl_ms, Granted done) {
  if (Status status = ready(); !status.ok()) return done(status);
  if (leases_.size() >= options_.records_max) {
    return done(Status{Code::exhausted, "too many leases"});
  }
  // A number of our own, so that a grant made twice is one lease. splitmix64; 63 bits.
  random_ += 0x9e3779b97f4a7c15;
  std::uint64_t id = random_;
  id = (id ^ (id >> 30)) * 0xbf58476d1ce4e5b9;
  id = (id ^ (id >> 27)) * 0x94d049bb133111eb;
  id = std::max<std::uint64_t>((id ^ (id >> 31)) >> 1, 1);
  client_.call("/v3/lease/grant", etcd::encode_grant(id, (std::uint64_t{ttl_ms} + 999) / 1000),
               [this, id, ttl_ms, done = std::move(done)](const Status& status, std::string_view) {
                 if (!status.ok() && status.code() != Code::aborted) return done(status);
                 leases_.keep(id, ttl_ms);
                 done(id);
               });
}

void EtcdStore::keep_alive(LeaseId lease, Done done) {
  if (leases_.renew(lease)) return done({});
  if (!loaded_ || stopping_) return done(ready());
  ask_about(lease, std::move(done));
}

// A lease that was granted by another server, or before this one was started.
void EtcdStore::ask_about(LeaseId lease, Done done) {
  const auto adopt_unseen = [this, lease](const Done& finish) {
    if (cache_.keys_of(lease) == nullptr) return finish(kAway);
    leases_.keep(lease, kAdoptedTtlMs);
    leases_.renew(lease);
    finish({});
  };
  if (!reachable_) return adopt_unseen(done);
  client_.call("/v3/lease/keepalive", etcd::encode_lease(lease),
               [this, lease, adopt_unseen, done = std::move(done)](const Status& status,
                                                                   std::string_view body) {
                 if (!status.ok()) return stopping_ ? done(status) : adopt_unseen(done);
                 const Result<std::uint64_t> left = etcd::decode_keep_alive(body);
                 if (!left.ok()) return done(left.status());
                 if (*left == 0) return done({Code::not_found, "the lease has ended"});
                 leases_.keep(lease, static_cast<std::uint32_t>(
                                         std::min<std::uint64_t>(*left * 1000, UINT32_MAX)));
                 done({});
               });
}

// The rank is gone, whatever etcd says: its records go from here at once. What etcd is not told now
// it finds out when nobody renews the lease.
void EtcdStore::revoke(LeaseId lease, Done done) {
  if (!loaded_ || stopping_) return done(ready());
  const bool kept = leases_.forget(lease);
  const auto drop = [this, lease](std::optional<std::uint64_t> revision) {
    const auto* const keys = cache_.keys_of(lease);
    if (keys == nullptr) return;
    for (const std::string& key : std::set<std::string>(*keys)) {
      revision.has_value() ? cache_.erase(key, *revision) : cache_.forget(key);
    }
  };
  if (!reachable_) {
    const bool known = kept || cache_.keys_of(lease) != nullptr;
    drop(std::nullopt);
    return done(known ? Status{} : kAway);
  }
  client_.call("/v3/lease/revoke", etcd::encode_lease(lease),
               [drop, kept, done = std::move(done)](const Status& status, std::string_view body) {
                 if (status.ok()) {
                   const Result<etcd::Header> header = etcd::decode_header(body);
                   if (header.ok()) drop(header->revision);
                   return done(header.status());
                 }
                 if (!kept || status.code() == Code::aborted) return done(status);
                 drop(std::nullopt);
                 done({});
               });
}

void EtcdStore::put(std::string_view key, std::string value, LeaseId lease, std::uint64_t expected,
                    Done done) {
  if (Status status = ready(); !status.ok()) return done(status);
  if (cache_.find(key) == nullptr && size() >= options_.records_max) {
    return done({Code::exhausted, "too many records"});
  }
  const etcd::KeyValue put{full(key), std::move(value), 0, lease};
  const std::string body = etcd::encode_put_if(put, expected);
  client_.call("/v3/kv/txn", body,
               [this, key = std::string(key), value = put.value, lease, done = std::move(done)](
                   const Status& status, std::string_view text) {
                 const Result<etcd::PutAnswer> answer =
                     status.ok() ? etcd::decode_put_if(text) : Result<etcd::PutAnswer>(status);
                 if (!answer.ok()) return done(answer.status());
                 if (answer->put) {
                   cache_.put(key, {value, answer->header.revision, lease});
                   return done({});
                 }
                 if (!answer->there.has_value()) {
                   cache_.erase(key, answer->header.revision);
                   return done({Code::aborted, "the key has changed meanwhile"});
                 }
                 const etcd::KeyValue& there = *answer->there;
                 cache_.put(key, {there.value, there.revision, there.lease});
                 // The answer to our first try was lost: what is there is ours.
                 if (there.value == value && there.lease == lease) return done({});
                 done({Code::aborted, "the key has changed meanwhile"});
               });
}

void EtcdStore::erase(std::string_view key, Done done) {
  if (Status status = ready(); !status.ok()) return done(status);
  client_.call("/v3/kv/deleterange", etcd::encode_delete(full(key)),
               [this, key = std::string(key), done = std::move(done)](const Status& status,
                                                                      std::string_view body) {
                 if (!status.ok()) return done(status);
                 const Result<etcd::Header> header = etcd::decode_header(body);
                 if (header.ok()) cache_.erase(key, header->revision);
                 done(header.status());
               });
}

Result<std::optional<StoredValue>> EtcdStore::get(std::string_view key) {
  if (!loaded_) return Status{Code::unavailable, "the records have not come from etcd yet"};
  const etcd::Cache::Entry* const entry = cache_.find(key);
  if (entry == nullptr) return std::optional<StoredValue>{};
  return std::optional<StoredValue>{{std::string(key), entry->value, entry->revision}};
}

Result<std::vector<StoredValue>> EtcdStore::list(std::string_view prefix) {
  if (!loaded_) return Status{Code::unavailable, "the records have not come from etcd yet"};
  std::vector<StoredValue> found;
  const etcd::Cache::Entries& all = cache_.entries();
  for (auto at = all.lower_bound(prefix); at != all.end(); ++at) {
    if (!at->first.starts_with(prefix)) break;
    found.push_back({at->first, at->second.value, at->second.revision});
  }
  return found;
}

StoreHealth EtcdStore::health() const {
  const std::int64_t since = stale_since_ns_.load(std::memory_order_relaxed);
  return {.kind = "etcd",
          .shared = true,
          .loaded = loaded_,
          .reachable = since == 0,
          .stale_ms = since == 0 ? 0 : (clock_.now_ns() - since) / 1'000'000};
}

void EtcdStore::visit_metrics(MetricVisitor& visitor) const {
  const auto counter = [&](const char* name, const char* help, const Counter& value) {
    visitor.counter(name, help, {}, static_cast<double>(value.value()));
  };
  const std::int64_t since = stale_since_ns_.load(std::memory_order_relaxed);
  visitor.gauge("kvlane_bootstrap_etcd_reachable", "1: the records are current", {},
                since == 0 ? 1 : 0);
  visitor.gauge("kvlane_bootstrap_etcd_stale_seconds", "since the records were last current", {},
                since == 0 ? 0 : static_cast<double>(clock_.now_ns() - since) * 1e-9);
  visitor.gauge("kvlane_bootstrap_etcd_records", "records known", {},
                static_cast<double>(records_.load(std::memory_order_relaxed)));
  visitor.gauge("kvlane_bootstrap_etcd_leases", "leases renewed by this server", {},
                static_cast<double>(leases_kept_.load(std::memory_order_relaxed)));
  counter("kvlane_bootstrap_etcd_outages_total", "times that etcd stopped answering",
          outages_total_);
  counter("kvlane_bootstrap_etcd_lists_total", "times that all records were read anew",
          lists_total_);
  counter("kvlane_bootstrap_etcd_watches_total", "watches opened", watches_total_);
  counter("kvlane_bootstrap_etcd_leases_restored_total", "leases granted again to living ranks",
          leases_.restored_total);
  counter("kvlane_bootstrap_etcd_calls_total", "calls to etcd", client_.counters().calls_total);
  for (std::size_t i = 0; i < etcd::ClientCounters::kCodes; ++i) {
    const auto code = static_cast<Code>(i);
    const Counter& failed = client_.counters().failed_calls[i];
    if (failed.value() == 0 && code != Code::unavailable) continue;  // with its first
    visitor.counter("kvlane_bootstrap_etcd_failed_calls_total",
                    "calls to etcd that failed, by cause",
                    {{"cause", std::string(to_string(code))}}, static_cast<double>(failed.value()));
  }
  counter("kvlane_bootstrap_etcd_failovers_total", "times that a member was left for another",
          client_.counters().failovers_total);
}

}  // namespace kvl::bootstrap
