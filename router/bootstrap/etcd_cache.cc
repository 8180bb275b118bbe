// Two indexes, kept together.
#include "router/bootstrap/etcd_cache.h"

#include <algorithm>
#include <utility>

namespace kvl::bootstrap::etcd {

const Cache::Entry* Cache::find(std::string_view key) const {
  const auto at = entries_.find(key);
  return at == entries_.end() ? nullptr : &at->second;
}

const std::set<std::string>* Cache::keys_of(LeaseId lease) const {
  const auto at = by_lease_.find(lease);
  return at == by_lease_.end() ? nullptr : &at->second;
}

void Cache::put(const std::string& key, Entry entry) {
  const auto gone = deleted_.find(key);
  if (gone != deleted_.end() && gone->second >= entry.revision) return;
  const auto at = entries_.find(key);
  if (at != entries_.end()) {
    if (at->second.revision >= entry.revision) return;
    unlink(key, at->second.lease);
  }
  if (entry.lease != kNoLease) by_lease_[entry.lease].insert(key);
  entries_[key] = std::move(entry);
}

void Cache::erase(const std::string& key, std::uint64_t revision) {
  if (revision > seen_) deleted_[key] = std::max(deleted_[key], revision);
  const Entry* const entry = find(key);
  if (entry != nullptr && entry->revision <= revision) forget(key);
}

void Cache::forget(const std::string& key) {
  const auto at = entries_.find(key);
  if (at == entries_.end()) return;
  unlink(key, at->second.lease);
  entries_.erase(at);
}

void Cache::replace(Entries entries, std::uint64_t revision) {
  Entries before = std::exchange(entries_, std::move(entries));
  by_lease_.clear();
  for (const auto& [key, entry] : entries_) {
    if (entry.lease != kNoLease) by_lease_[entry.lease].insert(key);
  }
  seen_ = revision;
  // What was changed from here while the list was on its way is newer than the list.
  const auto gone = std::exchange(deleted_, {});
  for (auto& [key, entry] : before) {
    if (entry.revision > revision) put(key, std::move(entry));
  }
  for (const auto& [key, at] : gone) {
    if (at > revision) erase(key, at);
  }
}

void Cache::clear() {
  entries_.clear();
  by_lease_.clear();
  deleted_.clear();
  seen_ = 0;
}

void Cache::set_seen(std::uint64_t revision) {
  seen_ = std::max(seen_, revision);
  std::erase_if(deleted_, [this](const auto& gone) { return gone.second <= seen_; });
}

void Cache::unlink(const std::string& key, LeaseId lease) {
  const auto at = by_lease_.find(lease);
  if (at == by_lease_.end()) return;
  at->second.erase(key);
  if (at->second.empty()) by_lease_.erase(at);
}

}  // namespace kvl::bootstrap::etcd
