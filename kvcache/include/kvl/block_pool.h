// BlockPool: who may use which page ids of one cache, for how long, and when an id may be given out
// again. It owns ids, not memory.
//
// A page is free, held (by leases, or by a cache that retains it) or quarantined. Quarantine is for
// a page that nobody here uses any more while a peer may still write into it: a logical end is not
// a physical one. It is not given out before the owner presents the quarantine's token, which means
// "proven: no byte can land there" (the peer acknowledged the abort, its epoch ended, the memory
// was registered anew).
//
// Thread: one, the owner's. Time is a parameter (nanoseconds of the owner's clock). Nothing
// blocks; everything that names a lease, a page generation or a token that has ended answers
// not_found and changes nothing.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "kvl/status.h"

namespace kvl {

struct LeaseId {
  std::uint64_t value = 0;  // 0 names nothing

  friend bool operator==(const LeaseId&, const LeaseId&) = default;
};

// A page of one life: its generation goes up each time it becomes free, so that a name kept too
// long does not reach the page's next user.
struct PageRef {
  std::uint32_t page = 0;
  std::uint32_t generation = 0;

  friend bool operator==(const PageRef&, const PageRef&) = default;
};

// One batch of quarantined pages. value 0: nothing was quarantined.
struct QuarantineToken {
  std::uint64_t value = 0;

  explicit operator bool() const { return value != 0; }
  friend bool operator==(const QuarantineToken&, const QuarantineToken&) = default;
};

struct ExpiredLease {
  LeaseId lease;
  QuarantineToken quarantine;  // of its pages, if the lease was exposed

  friend bool operator==(const ExpiredLease&, const ExpiredLease&) = default;
};

class BlockPool {
 public:
  static constexpr std::int64_t kNoDeadline = std::numeric_limits<std::int64_t>::max();

  // free + held + quarantined = page_count(), always.
  struct Counts {
    std::uint32_t free = 0;
    std::uint32_t held = 0;
    std::uint32_t quarantined = 0;

    friend bool operator==(const Counts&, const Counts&) = default;
  };

  explicit BlockPool(std::uint32_t page_count);
  ~BlockPool();
  BlockPool(BlockPool&&) noexcept;
  BlockPool& operator=(BlockPool&&) noexcept;

  std::uint32_t page_count() const;
  Counts counts() const;
  std::size_t lease_count() const;

  // A lease on `pages` free pages. Ids are in rising order and neighbours where possible, which is
  // what lets a plan merge runs. exhausted: fewer are free, nothing changed. invalid_argument: 0.
  Result<LeaseId> allocate(std::uint32_t pages, std::int64_t deadline_ns = kNoDeadline);

  // A further lease on pages that are held (a shared prefix). All or nothing.
  Result<LeaseId> share(std::span<const PageRef> pages, std::int64_t deadline_ns = kNoDeadline);

  // `pages` more pages for a lease, appended to its list; as allocate().
  Status extend(LeaseId lease, std::uint32_t pages);

  // In the order of allocation. Valid until the lease is extended or ends.
  Result<std::span<const std::uint32_t>> pages(LeaseId lease) const;

  // The name of a held page in its present life.
  Result<PageRef> ref(std::uint32_t page) const;
  bool held(PageRef ref) const;

  Status set_deadline(LeaseId lease, std::int64_t deadline_ns);

  // From now on a peer may touch the lease's pages: should the lease end in this state, they are
  // quarantined. settle() takes that back: it is proven that no peer can any more. A prefix that
  // others share belongs into a lease of its own, or it is quarantined along.
  Status expose(LeaseId lease);
  Status settle(LeaseId lease);

  // Ends a lease. Pages that nobody else holds become free, or quarantined if it was exposed. A
  // page of an exposed lease that others still hold stays held and goes to quarantine, not to
  // free, when the last of them ends before the token is presented.
  Result<QuarantineToken> release(LeaseId lease);

  // Ends every lease whose deadline is before or at now, as release() does. Replaces `out`.
  void expire(std::int64_t now_ns, std::vector<ExpiredLease>& out);
  // The earliest deadline of all leases; kNoDeadline without one.
  std::int64_t next_deadline_ns() const;

  // The proof that nothing can land in these pages any more. Each token ends once.
  Status release_quarantine(QuarantineToken token);

  // A hold without a lease, page by page, as a prefix cache has it. retain() needs a held page;
  // drop() takes back one retain().
  Status retain(PageRef page);
  Status drop(PageRef page);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvl
