// The store in an etcd cluster. What is known is kept here, fed by a watch, so that a lookup asks
// nobody; what changes goes to etcd and ends when etcd has it. While etcd is away everything that
// is known is served, renewals count here, and only what is new is refused.
//
//   waiting ──► listing ──► opening ──► watching
//      ▲           │           │           │        a break: the watch goes on where it was;
//      └───────────┴───────────┴───────────┘        compacted, or another cluster: list anew
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "kvl/clock.h"
#include "router/bootstrap/etcd_cache.h"
#include "router/bootstrap/etcd_client.h"
#include "router/bootstrap/etcd_leases.h"
#include "router/bootstrap/etcd_watch.h"
#include "router/bootstrap/store.h"

namespace kvl::bootstrap {

struct EtcdStoreOptions {
  etcd::ClientOptions client;
  std::string prefix = "/kvlane/";  // of every key; servers with the same prefix are one service
  std::uint32_t probe_ms = 1000;    // how often etcd is asked whether it is there
  std::uint64_t records_max = 65536;
  std::uint64_t seed = 1;  // of lease numbers
};

class EtcdStore final : public Store, private http::Timed {
 public:
  // Starts at once; the loop need not run yet.
  EtcdStore(http::Loop& loop, const Clock& clock, EtcdStoreOptions options);
  // Before the loop ends: what is under way ends as aborted, nothing is sent any more.
  void stop();
  // Any thread.
  Status reload_tls(std::string* error) {
    return options_.client.tls == nullptr ? Status{} : options_.client.tls->reload(error);
  }

  void grant(std::uint32_t ttl_ms, Granted done) override;
  void keep_alive(LeaseId lease, Done done) override;
  void revoke(LeaseId lease, Done done) override;
  void put(std::string_view key, std::string value, LeaseId lease, std::uint64_t expected,
           Done done) override;
  void erase(std::string_view key, Done done) override;
  Result<std::optional<StoredValue>> get(std::string_view key) override;
  Result<std::vector<StoredValue>> list(std::string_view prefix) override;
  void expire() override;
  std::size_t size() const override { return cache_.entries().size(); }
  StoreHealth health() const override;
  void visit_metrics(MetricVisitor& visitor) const override;

 private:
  enum class Sync : std::uint8_t { waiting, listing, opening, watching };

  void on_deadline() override;
  void list_page(const std::string& from, std::uint64_t revision);
  void listed(const Status& status, std::string_view body, std::uint64_t revision);
  void open_watch();
  void on_changed(const etcd::WatchAnswer& answer);
  void on_ended(const Status& why);
  void apply(const etcd::WatchEvent& event);
  void wait_and_retry();
  void probe();
  void probed(const Status& status, std::string_view body);
  void set_reachable(bool reachable);
  void update_current();
  Status ready() const;
  void ask_about(LeaseId lease, Done done);
  std::string full(std::string_view key) const { return options_.prefix + std::string(key); }

  const EtcdStoreOptions options_;
  const Clock& clock_;
  const std::string end_;  // of the range of our keys
  std::uint64_t random_;
  etcd::Client client_;
  etcd::Cache cache_;
  etcd::Leases leases_;
  etcd::Watch watch_;

  Sync sync_ = Sync::waiting;
  bool must_list_ = true, loaded_ = false, stopping_ = false, probing_ = false;
  bool reachable_ = false, said_away_ = false;
  etcd::Cache::Entries page_;  // the list, as far as it has come
  std::size_t watched_endpoint_ = 0;
  std::uint64_t cluster_ = 0;
  std::int64_t retry_at_ns_ = 0, probe_at_ns_ = 0;
  std::uint32_t pause_ms_ = 0;

  // Read by any thread.
  std::atomic<std::int64_t> stale_since_ns_;  // 0: the records are current
  std::atomic<std::uint64_t> records_{0}, leases_kept_{0};
  Counter lists_total_, watches_total_, outages_total_;
};

}  // namespace kvl::bootstrap
