// Renewing and restoring, a bounded number of leases at a time.
#include "router/bootstrap/etcd_leases.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "kvl/log.h"
#include "router/bootstrap/etcd_wire.h"

namespace kvl::bootstrap::etcd {
namespace {

constexpr std::size_t kCallingMax = 16;

}  // namespace

bool Leases::alive(LeaseId id) const {
  const auto at = leases_.find(id);
  return at != leases_.end() && clock_.now_ns() < at->second.deadline_ns;
}

void Leases::keep(LeaseId id, std::uint32_t ttl_ms) {
  Lease& lease = leases_[id];
  lease.ttl_ms = ttl_ms;
  lease.deadline_ns = clock_.now_ns() + std::int64_t{ttl_ms} * 1'000'000;
}

bool Leases::renew(LeaseId id) {
  const auto at = leases_.find(id);
  if (at == leases_.end() || clock_.now_ns() >= at->second.deadline_ns) return false;
  at->second.deadline_ns = clock_.now_ns() + std::int64_t{at->second.ttl_ms} * 1'000'000;
  at->second.due = true;
  pump();
  return true;
}

void Leases::lost(LeaseId id) {
  const auto at = leases_.find(id);
  if (at == leases_.end()) return;
  at->second.lost = true;
}

void Leases::set_reachable(bool reachable) {
  reachable_ = reachable;
  pump();
}

void Leases::lose_all() {
  for (auto& [id, lease] : leases_) lease.lost = lease.due = true;
  pump();
}

bool Leases::expire() {
  const std::int64_t now = clock_.now_ns();
  bool stray = false;
  std::erase_if(leases_, [&](const auto& entry) {
    const bool over = entry.second.deadline_ns <= now && !entry.second.calling;
    stray = stray || (over && entry.second.lost);
    return over;
  });
  pump();
  return stray;
}

// Calls may end before they return: then the outer round goes on with what is left.
void Leases::pump() {
  if (pumping_ || !reachable_) return;
  pumping_ = true;
  std::vector<LeaseId> ready;
  for (const auto& [id, lease] : leases_) {
    if (calling_ + ready.size() >= kCallingMax) break;
    if (!lease.calling && lease.due) ready.push_back(id);
  }
  for (const LeaseId id : ready) {
    const auto at = leases_.find(id);
    if (at == leases_.end()) continue;
    ++calling_;
    at->second.calling = true;
    at->second.due = false;
    if (at->second.lost) {
      restore(id, at->second);
    } else {
      send(id);
    }
  }
  pumping_ = false;
}

// A call that could not be made is made again when etcd is back: called() does not pump then.
void Leases::called(LeaseId id, bool done) {
  --calling_;
  const auto at = leases_.find(id);
  if (at != leases_.end()) {
    at->second.calling = false;
    at->second.due = at->second.due || !done;
  }
  if (done) pump();
}

void Leases::send(LeaseId id) {
  client_.call("/v3/lease/keepalive", encode_lease(id),
               [this, id](const Status& status, std::string_view body) {
                 const Result<std::uint64_t> left =
                     status.ok() ? decode_keep_alive(body) : Result<std::uint64_t>(status);
                 const auto at = leases_.find(id);
                 if (at != leases_.end() && left.ok() && *left == 0) {
                   at->second.lost = at->second.due = true;
                 }
                 called(id, left.ok());
               });
}

struct Leases::Restore {
  LeaseId id = kNoLease;
  std::vector<std::string> keys;
};

void Leases::restore(LeaseId id, const Lease& lease) {
  const std::uint64_t ttl_s = (std::uint64_t{lease.ttl_ms} + 999) / 1000;
  const auto work = std::make_shared<Restore>();
  work->id = id;
  if (const auto* const keys = cache_.keys_of(id)) work->keys.assign(keys->begin(), keys->end());
  client_.call("/v3/lease/grant", encode_grant(id, ttl_s),
               [this, work](const Status& status, std::string_view) {
                 // aborted: it is there, which is as good.
                 if (status.ok() || status.code() == Code::aborted) return put_back(work);
                 called(work->id, false);
               });
}

// One key after the other. A key that exists belongs to whoever put it: it is only looked at.
void Leases::put_back(const std::shared_ptr<Restore>& work) {
  const Cache::Entry* entry = nullptr;
  while (!work->keys.empty() && entry == nullptr) {
    entry = cache_.find(work->keys.back());
    if (entry != nullptr && entry->lease != work->id) entry = nullptr;
    if (entry == nullptr) work->keys.pop_back();
  }
  if (entry == nullptr) {
    const auto at = leases_.find(work->id);
    if (at != leases_.end()) at->second.lost = false;
    restored_total.add();
    log(LogLevel::info, "bootstrap.lease_restored", {{"lease", work->id}});
    return called(work->id, true);
  }
  const std::string key = work->keys.back();
  const KeyValue put{key_of_(key), entry->value, 0, work->id};
  client_.call(
      "/v3/kv/txn", encode_put_if(put, 0),
      [this, work, key, value = put.value](const Status& status, std::string_view body) {
        const Result<PutAnswer> answer =
            status.ok() ? decode_put_if(body) : Result<PutAnswer>(status);
        if (!answer.ok()) return called(work->id, false);
        if (answer->put) {
          cache_.put(key, {value, answer->header.revision, work->id});
        } else if (answer->there.has_value()) {
          cache_.put(key, {answer->there->value, answer->there->revision, answer->there->lease});
        }
        work->keys.pop_back();
        put_back(work);
      });
}

}  // namespace kvl::bootstrap::etcd
