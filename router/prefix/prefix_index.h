// Which worker has which prefixes in its KV cache, as far as the router can tell from where it sent
// them: every worker is modelled as a cache of so many tokens that forgets what was not used for
// longest, ends of prompts first.
//
// One hash table from a prefix's key to the workers that hold it; each holding is also a link in
// its worker's list by age. About 40 bytes for each prefix of 4 KiB that one worker holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "router/prefix/prompt_keys.h"

namespace kvl::router {

struct PrefixMatch {
  std::uint32_t worker = 0;  // id
  std::uint32_t depth = 0;   // so many prefixes of the prompt, from the first
};

// Thread-safe; every call is short.
class PrefixIndex {
 public:
  // Of workers whose capacity is not known.
  explicit PrefixIndex(std::uint64_t default_capacity_tokens);

  // Appends who holds anything of the prompt, deepest first. Of prefixes that very many workers
  // hold only the latest kHoldersMax are looked at: any of them is as good.
  void match(const PromptKeys& prompt, std::vector<PrefixMatch>& out) const;
  // The worker computes this prompt: it has it from now on, most recently used.
  void insert(const PromptKeys& prompt, std::uint32_t worker);
  // The worker's cache is empty.
  void forget(std::uint32_t worker);
  // The worker is gone, and does not come back under this id.
  void remove(std::uint32_t worker);
  // In tokens. 0: not known.
  void set_capacity(std::uint32_t worker, std::uint64_t tokens);

  struct Size {
    std::uint64_t prefixes = 0;  // different ones
    std::uint64_t holdings = 0;  // (prefix, worker)
    std::uint64_t memory_bytes = 0;
  };
  Size size() const;
  // That the worker is thought to hold.
  std::uint64_t tokens(std::uint32_t worker) const;

  static constexpr std::size_t kHoldersMax = 512;

 private:
  using Index = std::uint32_t;
  static constexpr Index kNone = UINT32_MAX;

  struct Holding {
    std::uint64_t key;
    Index next_holder;  // of the same prefix; of free ones: the next free one
    Index older, newer;
    std::uint16_t slot;
    std::uint16_t tokens;
  };
  struct Slot {
    std::uint32_t worker = 0;
    bool used = false;
    std::uint64_t tokens = 0, capacity = 0;
    Index newest = kNone, oldest = kNone;
  };

  std::size_t home(std::uint64_t key) const { return key & (heads_.size() - 1); }
  std::size_t find(std::uint64_t key) const;  // its place, or the free one where it would be
  Index holding_of(std::size_t place, std::uint16_t slot) const;
  std::uint16_t slot_for(std::uint32_t worker);
  void unlink(Slot& slot, Index at);
  void push_newest(Slot& slot, Index at);
  Index take_holding();
  void add(std::uint64_t key, std::uint16_t slot, std::uint64_t tokens);
  void drop(Index at);
  void erase(std::size_t place);
  void grow();
  void trim(const Slot& slot);  // to its capacity, oldest first
  void empty(Slot& slot);

  const std::uint64_t default_capacity_;
  mutable std::mutex mutex_;  // guards the rest
  // The table: open addressing, linear probing. heads_[i] == kNone: free.
  std::vector<std::uint64_t> keys_;
  std::vector<Index> heads_;
  std::size_t prefixes_ = 0;
  std::deque<Holding> holdings_;  // grows without a copy, and without room for as many again
  Index free_ = kNone;
  std::size_t held_ = 0;
  std::vector<Slot> slots_;
  std::unordered_map<std::uint32_t, std::uint16_t> slot_of_;
  // match(): who has been seen, by slot.
  mutable std::vector<std::uint32_t> seen_;
  mutable std::vector<Index> found_;
  mutable std::uint32_t round_ = 0;
};

}  // namespace kvl::router
