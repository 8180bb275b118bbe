// The pages of a worker.
#include "worker/page_cache.h"

#include <algorithm>
#include <cassert>

namespace kvl::worker {
namespace {

BlockValue pack(PageRef ref) { return BlockValue{ref.generation} << 32 | ref.page; }
PageRef unpack(BlockValue value) {
  return {static_cast<std::uint32_t>(value), static_cast<std::uint32_t>(value >> 32)};
}

// A call that only fails if this class has lost count.
void must([[maybe_unused]] const Status& status) { assert(status.ok()); }

}  // namespace

Result<PageHold> PageCache::acquire(std::span<const BlockHash> chain, std::size_t reuse_max,
                                    std::uint32_t total) {
  PageHold hold;
  std::vector<BlockValue> values;
  index_.match(chain.first(std::min({chain.size(), reuse_max, std::size_t{total}})), values);
  std::vector<PageRef> refs;
  refs.reserve(values.size());
  for (const BlockValue value : values) refs.push_back(unpack(value));
  if (!refs.empty()) {
    const Result<LeaseId> shared = pool_.share(refs);
    if (!shared) return shared.status();
    hold.shared = *shared;
    for (const PageRef& ref : refs) hold.pages.push_back(ref.page);
  }
  hold.reused = static_cast<std::uint32_t>(refs.size());
  pin(hold, chain.first(refs.size()));
  const std::uint32_t more = total - hold.reused;
  if (more > 0) {
    const Result<LeaseId> own = make_room(more)
                                    ? pool_.allocate(more)
                                    : Result<LeaseId>(Status(Code::exhausted, "KV pages"));
    if (!own) {
      release(hold);
      return own.status();
    }
    hold.own = *own;
    const Result<std::span<const std::uint32_t>> pages = pool_.pages(hold.own);
    hold.pages.insert(hold.pages.end(), pages->begin(), pages->end());
  }
  return hold;
}

bool PageCache::make_room(std::uint32_t pages) {
  std::vector<BlockValue> evicted;
  while (pool_.counts().free < pages) {
    evicted.clear();
    if (index_.evict(pages - pool_.counts().free, evicted) == 0) return false;
    drop(evicted);
  }
  return true;
}

void PageCache::publish(PageHold& hold, std::span<const BlockHash> chain) {
  const std::size_t count = std::min(chain.size(), hold.pages.size());
  const std::size_t known = index_.matched_blocks(chain.first(count));
  std::vector<BlockValue> values;
  for (std::size_t i = 0; i < count; ++i) {
    const Result<PageRef> ref = pool_.ref(hold.pages[i]);
    if (!ref) return;
    values.push_back(pack(*ref));
  }
  std::vector<BlockValue> evicted;
  const std::size_t inserted = index_.insert(chain.first(count), values, evicted);
  for (std::size_t i = known; i < inserted; ++i) must(pool_.retain(unpack(values[i])));
  drop(evicted);
  pin(hold, chain.first(inserted));
}

void PageCache::pin(PageHold& hold, std::span<const BlockHash> chain) {
  const std::optional<BlockHash> old = hold.pin;
  hold.pin.reset();
  if (const std::size_t pinned = index_.pin(chain); pinned > 0) hold.pin = chain[pinned - 1];
  if (old) must(index_.unpin(*old));
}

void PageCache::expose(const PageHold& hold) {
  if (hold.own.value != 0) must(pool_.expose(hold.own));
}

void PageCache::settle(const PageHold& hold) {
  if (hold.own.value != 0) must(pool_.settle(hold.own));
}

QuarantineToken PageCache::release(const PageHold& hold) {
  QuarantineToken token;
  if (hold.pin) must(index_.unpin(*hold.pin));
  if (hold.shared.value != 0) (void)pool_.release(hold.shared);
  if (hold.own.value != 0) {
    const Result<QuarantineToken> released = pool_.release(hold.own);
    if (released) token = *released;
  }
  return token;
}

void PageCache::unlock(QuarantineToken token) {
  if (token) must(pool_.release_quarantine(token));
}

void PageCache::flush() {
  std::vector<BlockValue> evicted;
  index_.evict(index_.size(), evicted);
  drop(evicted);
}

void PageCache::drop(std::span<const BlockValue> values) {
  for (const BlockValue value : values) must(pool_.drop(unpack(value)));
}

}  // namespace kvl::worker
