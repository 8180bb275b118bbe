// How the records are kept current: a list once, then a watch, and a probe that notices when etcd,
// or the member that the watch hangs on, has gone silent.
#include <algorithm>
#include <utility>

#include "kvl/log.h"
#include "router/bootstrap/etcd_store.h"
#include "router/bootstrap/etcd_wire.h"

namespace kvl::bootstrap {
namespace {

constexpr double kTickSecs = 0.1;
constexpr std::uint32_t kPauseMsMin = 50, kPauseMsMax = 1000;
constexpr std::uint32_t kPageKeys = 64;
constexpr std::size_t kListMax = 1 << 20;

}  // namespace

EtcdStore::EtcdStore(http::Loop& loop, const Clock& clock, EtcdStoreOptions options)
    : options_(std::move(options)),
      clock_(clock),
      end_(etcd::range_end(options_.prefix)),
      random_(options_.seed),
      client_(loop, options_.client),
      leases_(client_, cache_, clock, [this](std::string_view key) { return full(key); }),
      watch_(
          loop, [this](const etcd::WatchAnswer& answer) { on_changed(answer); },
          [this](const Status& why) { on_ended(why); }),
      stale_since_ns_(std::max<std::int64_t>(clock.now_ns(), 1)) {
  loop.watch(*this);
  set_deadline(http::LoopClock::now());
}

void EtcdStore::stop() {
  stopping_ = true;
  clear_deadline();
  watch_.close();
  client_.stop();
}

void EtcdStore::on_deadline() {
  if (stopping_) return;
  set_deadline(http::after_seconds(kTickSecs));
  const std::int64_t now = clock_.now_ns();
  if (sync_ == Sync::waiting && now >= retry_at_ns_) {
    if (must_list_) {
      sync_ = Sync::listing;
      page_.clear();
      list_page(options_.prefix, 0);
    } else {
      open_watch();
    }
  }
  if (!probing_ && now >= probe_at_ns_) probe();
  expire();
}

void EtcdStore::expire() {
  // The cache may hold keys of a rank that died while etcd had lost it. A list on its way leaves
  // them out.
  if (leases_.expire() && sync_ != Sync::listing) {
    must_list_ = true;
    watch_.close();
    wait_and_retry();
  }
  records_.store(cache_.entries().size(), std::memory_order_relaxed);
  leases_kept_.store(leases_.size(), std::memory_order_relaxed);
}

void EtcdStore::wait_and_retry() {
  sync_ = Sync::waiting;
  pause_ms_ = std::clamp(pause_ms_ * 2, kPauseMsMin, kPauseMsMax);
  retry_at_ns_ = clock_.now_ns() + std::int64_t{pause_ms_} * 1'000'000;
  update_current();
}

void EtcdStore::list_page(const std::string& from, std::uint64_t revision) {
  client_.call(
      "/v3/kv/range",
      etcd::encode_range({.key = from, .end = end_, .limit = kPageKeys, .revision = revision}),
      [this, revision](const Status& status, std::string_view body) {
        listed(status, body, revision);
      });
}

void EtcdStore::listed(const Status& status, std::string_view body, std::uint64_t revision) {
  const Result<etcd::RangeAnswer> answer =
      status.ok() ? etcd::decode_range(body) : Result<etcd::RangeAnswer>(status);
  if (!answer.ok() || stopping_) return wait_and_retry();
  // All pages are of the moment of the first one.
  if (revision == 0) revision = answer->header.revision;
  for (const etcd::KeyValue& item : answer->values) {
    if (!item.key.starts_with(options_.prefix)) continue;
    page_[item.key.substr(options_.prefix.size())] = {item.value, item.revision, item.lease};
  }
  if (page_.size() > kListMax) {
    log(LogLevel::error, "bootstrap.etcd_too_much",
        {{"prefix", options_.prefix},
         {"code", to_string(Code::exhausted)},
         {"hint", "give kvlane a prefix of its own: bootstrap.etcd_prefix"}});
    return wait_and_retry();
  }
  if (answer->more && !answer->values.empty()) {
    return list_page(answer->values.back().key + '\0', revision);
  }
  const bool replaced = cluster_ != answer->header.cluster;
  if (replaced) {
    // Revisions count from the beginning; what living ranks had is put back. The entries stay until
    // then, as history that anything is newer than.
    if (cluster_ != 0) {
      log(LogLevel::warning, "bootstrap.etcd_replaced",
          {{"revision", revision},
           {"code", to_string(Code::not_found)},
           {"hint", "nothing, if etcd was set up anew: living ranks are put back; else see why"}});
    }
    cluster_ = answer->header.cluster;
    etcd::Cache::Entries before = cache_.entries();
    cache_.clear();
    for (auto& [key, entry] : before) {
      if (leases_.alive(entry.lease))
        page_.try_emplace(key, etcd::Cache::Entry{entry.value, 1, entry.lease});
    }
  } else {
    // Keys of living ranks that etcd has lost are not given up.
    for (const auto& [key, entry] : cache_.entries()) {
      if (page_.contains(key) || entry.revision > revision || !leases_.alive(entry.lease)) continue;
      page_[key] = entry;
      leases_.lost(entry.lease);
    }
  }
  cache_.replace(std::exchange(page_, {}), revision);
  if (replaced) leases_.lose_all();
  lists_total_.add();
  must_list_ = false;
  loaded_ = true;
  set_reachable(true);
  open_watch();
}

void EtcdStore::open_watch() {
  sync_ = Sync::opening;
  watched_endpoint_ = client_.endpoint();
  watches_total_.add();
  watch_.open(client_.pool(), client_.authorization(),
              etcd::encode_watch(options_.prefix, end_, cache_.seen() + 1),
              options_.client.timeout_ms * 1e-3);
}

void EtcdStore::on_changed(const etcd::WatchAnswer& answer) {
  if (sync_ == Sync::opening) {
    sync_ = Sync::watching;
    pause_ms_ = 0;
    update_current();
  }
  for (const etcd::WatchEvent& event : answer.events) {
    if (event.now.key.starts_with(options_.prefix)) apply(event);
    cache_.set_seen(event.now.revision);
  }
}

void EtcdStore::apply(const etcd::WatchEvent& event) {
  const std::string key = event.now.key.substr(options_.prefix.size());
  if (!event.deleted) {
    return cache_.put(key, {event.now.value, event.now.revision, event.now.lease});
  }
  const etcd::Cache::Entry* const entry = cache_.find(key);
  if (entry != nullptr && entry->revision < event.now.revision && leases_.alive(entry->lease)) {
    return leases_.lost(entry->lease);  // its rank may be alive: not given up yet
  }
  cache_.erase(key, event.now.revision);
}

void EtcdStore::on_ended(const Status& why) {
  if (stopping_) return;
  if (why.code() == Code::aborted) must_list_ = true;
  if (why.code() == Code::permission) client_.drop_token();
  if (why.code() != Code::aborted && why.code() != Code::permission) {
    client_.leave(watched_endpoint_);
  }
  wait_and_retry();
}

// A read that needs a majority: a member that is cut off, or stands still, does not answer it.
void EtcdStore::probe() {
  probing_ = true;
  client_.call(
      "/v3/kv/range",
      etcd::encode_range({.key = options_.prefix, .end = end_, .limit = 1, .keys_only = true}),
      [this](const Status& status, std::string_view body) { probed(status, body); });
}

void EtcdStore::probed(const Status& status, std::string_view body) {
  probing_ = false;
  if (stopping_) return;
  const Result<etcd::RangeAnswer> answer =
      status.ok() ? etcd::decode_range(body) : Result<etcd::RangeAnswer>(status);
  // While it is away it is asked more often: the records should be current soon after.
  const std::int64_t pause_ms = answer.ok() ? options_.probe_ms : options_.probe_ms / 4;
  probe_at_ns_ = clock_.now_ns() + pause_ms * 1'000'000;
  if (answer.ok() && loaded_) {
    const bool other =
        answer->header.cluster != cluster_ || answer->header.revision < cache_.seen();
    const bool moved = watched_endpoint_ != client_.endpoint();
    if (sync_ == Sync::watching && (other || moved)) {
      must_list_ = must_list_ || other;
      if (other) cluster_ = answer->header.cluster == cluster_ ? UINT64_MAX : cluster_;
      watch_.close();
      pause_ms_ = 0;
      wait_and_retry();
    }
  }
  set_reachable(answer.ok());
}

void EtcdStore::set_reachable(bool reachable) {
  if (reachable != reachable_) {
    reachable_ = reachable;
  }
  if (!reachable && !said_away_) {
    said_away_ = true;
    outages_total_.add();
    log(LogLevel::warning, "bootstrap.etcd_away",
        {{"member", client_.endpoint_text()},
         {"records", cache_.entries().size()},
         {"meanwhile", "what is known is served, living ranks are kept, new ranks get 503"},
         {"code", to_string(Code::unavailable)},
         {"hint", "check etcd's members and bootstrap.etcd_endpoints"}});
  }
  leases_.set_reachable(reachable);
  update_current();
}

// Current: etcd answers and the watch stands.
void EtcdStore::update_current() {
  const bool current = reachable_ && loaded_ && sync_ == Sync::watching;
  const std::int64_t since = stale_since_ns_.load(std::memory_order_relaxed);
  if (current == (since == 0)) return;
  const std::int64_t now = std::max<std::int64_t>(clock_.now_ns(), 1);
  stale_since_ns_.store(current ? 0 : now, std::memory_order_relaxed);
  if (current && said_away_) {
    said_away_ = false;
    log(LogLevel::warning, "bootstrap.etcd_back",
        {{"member", client_.endpoint_text()},
         {"away_ms", (now - since) / 1'000'000},
         {"records", cache_.entries().size()}});
  }
}

}  // namespace kvl::bootstrap
