// The pages of a worker: held by requests, kept for their prefix when a request ends, taken back
// when room is needed, and locked away while a peer might still write into them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvl/block_hash.h"
#include "kvl/block_index.h"
#include "kvl/block_pool.h"
#include "kvl/status.h"

namespace kvl::worker {

// What a request holds. `pages` are in token order; the first `reused` of them are a prefix that
// others may be using as well.
struct PageHold {
  std::vector<std::uint32_t> pages;
  std::uint32_t reused = 0;
  LeaseId shared, own;
  std::optional<BlockHash> pin;  // the last block of the chain that stays known while this lasts
};

// One thread: the scheduler's.
class PageCache {
 public:
  explicit PageCache(std::uint32_t page_count) : pool_(page_count), index_(page_count) {}

  std::uint32_t page_count() const { return pool_.page_count(); }
  BlockPool::Counts counts() const { return pool_.counts(); }
  std::size_t cached_pages() const { return index_.size(); }

  // `total` pages, as many of the first ones as the chain finds (at most reuse_max). exhausted: not
  // now; nothing changed but that cached pages nobody uses may be gone.
  Result<PageHold> acquire(std::span<const BlockHash> chain, std::size_t reuse_max,
                           std::uint32_t total);
  // The hold's first pages have the content of the chain from now on.
  void publish(PageHold& hold, std::span<const BlockHash> chain);
  // A peer may write into the hold's own pages; until settle() they do not become free.
  void expose(const PageHold& hold);
  void settle(const PageHold& hold);
  // Ends the hold. A token that is not 0 must be given to unlock() once no byte can land any more.
  QuarantineToken release(const PageHold& hold);
  void unlock(QuarantineToken token);
  // Forgets every cached prefix; pages in use stay with their requests.
  void flush();

 private:
  bool make_room(std::uint32_t pages);
  // Cached pages that a request holds are not worth evicting: nothing would become free.
  void pin(PageHold& hold, std::span<const BlockHash> chain);
  void drop(std::span<const BlockValue> values);

  BlockPool pool_;
  BlockIndex index_;  // values: PageRef, packed; each is retained in the pool
};

}  // namespace kvl::worker
