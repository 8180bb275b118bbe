// What is known of etcd's keys: the answers of the rendezvous come from here, without a round trip.
// A change that is older than what is known is not taken.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>

#include "router/bootstrap/store.h"

namespace kvl::bootstrap::etcd {

class Cache {
 public:
  struct Entry {
    std::string value;
    std::uint64_t revision = 0;
    LeaseId lease = kNoLease;
  };
  using Entries = std::map<std::string, Entry, std::less<>>;

  const Entries& entries() const { return entries_; }
  const Entry* find(std::string_view key) const;
  // Keys under a lease; null for none.
  const std::set<std::string>* keys_of(LeaseId lease) const;

  void put(const std::string& key, Entry entry);
  // The key was deleted at `revision`, by us or as the watch says.
  void erase(const std::string& key, std::uint64_t revision);
  // The key goes from here only.
  void forget(const std::string& key);
  // All of it, as it was at `revision`.
  void replace(Entries entries, std::uint64_t revision);
  // Nothing is known any more: revisions count anew.
  void clear();

  // Everything up to here has been seen; a watch goes on behind it.
  std::uint64_t seen() const { return seen_; }
  void set_seen(std::uint64_t revision);

 private:
  void unlink(const std::string& key, LeaseId lease);

  Entries entries_;
  std::unordered_map<LeaseId, std::set<std::string>> by_lease_;
  // Our own deletions that the watch has not come to yet: the puts before them are history.
  std::map<std::string, std::uint64_t, std::less<>> deleted_;
  std::uint64_t seen_ = 0;
};

}  // namespace kvl::bootstrap::etcd
