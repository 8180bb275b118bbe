// BlockPool: counts per page (users, pending quarantines) decide its state; leases and quarantines
// are lists of pages that add to or take from those counts.
#include "kvl/block_pool.h"

#include <cassert>
#include <set>
#include <utility>

#include "kvcache/pool/free_pages.h"
#include "transport/base/slot_map.h"

namespace kvl {
namespace {

constexpr Status kStaleLease{Code::not_found, "pool: no such lease"};

struct Page {
  std::uint32_t generation = 1;
  std::uint32_t users = 0;     // leases and retains
  std::uint32_t retains = 0;   // of those, retains: what drop() may take back
  std::uint32_t unproven = 0;  // quarantines whose token has not been presented
};

struct Lease {
  std::vector<std::uint32_t> pages;
  std::int64_t deadline_ns = BlockPool::kNoDeadline;
  bool exposed = false;
};

struct Quarantine {
  std::vector<std::uint32_t> pages;
};

}  // namespace

struct BlockPool::State {
  explicit State(std::uint32_t page_count) : pages(page_count), free(page_count) {}

  void add_deadline(std::uint64_t id, std::int64_t deadline_ns) {
    if (deadline_ns != kNoDeadline) deadlines.emplace(deadline_ns, id);
  }
  void remove_deadline(std::uint64_t id, std::int64_t deadline_ns) {
    if (deadline_ns != kNoDeadline) deadlines.erase({deadline_ns, id});
  }

  // Free pages into a lease's list.
  void take(std::uint32_t count, std::vector<std::uint32_t>& out) {
    const std::size_t first = out.size();
    free.take(count, out);
    for (std::size_t i = first; i < out.size(); ++i) pages[out[i]].users = 1;
    held += count;
  }

  void remove_user(std::uint32_t id) {
    Page& page = pages[id];
    assert(page.users > 0);
    if (--page.users > 0) return;
    --held;
    if (page.unproven > 0) {
      ++quarantined;
    } else {
      make_free(id);
    }
  }

  void remove_unproven(std::uint32_t id) {
    Page& page = pages[id];
    assert(page.unproven > 0);
    if (--page.unproven > 0 || page.users > 0) return;
    --quarantined;
    make_free(id);
  }

  void make_free(std::uint32_t id) {
    ++pages[id].generation;
    free.put(id);
  }

  bool is_held(PageRef ref) const {
    return ref.page < pages.size() && pages[ref.page].users > 0 &&
           pages[ref.page].generation == ref.generation;
  }

  QuarantineToken end(std::uint64_t id, Lease& lease) {
    remove_deadline(id, lease.deadline_ns);
    QuarantineToken token;
    if (lease.exposed && !lease.pages.empty()) {
      const auto [quarantine_id, quarantine] = quarantines.insert();
      token.value = quarantine_id;
      quarantine->pages.assign(lease.pages.begin(), lease.pages.end());
      for (const std::uint32_t page : lease.pages) ++pages[page].unproven;
    }
    for (const std::uint32_t page : lease.pages) remove_user(page);
    leases.erase(id);
    return token;
  }

  Lease& new_lease(std::int64_t deadline_ns, LeaseId& id) {
    const auto [value, lease] = leases.insert();
    id.value = value;
    lease->pages.clear();
    lease->exposed = false;
    lease->deadline_ns = deadline_ns;
    add_deadline(value, deadline_ns);
    return *lease;
  }

  std::vector<Page> pages;
  FreePages free;
  std::uint32_t held = 0;
  std::uint32_t quarantined = 0;
  SlotMap<Lease> leases;
  SlotMap<Quarantine> quarantines;
  std::set<std::pair<std::int64_t, std::uint64_t>> deadlines;
};

BlockPool::BlockPool(std::uint32_t page_count) : state_(std::make_unique<State>(page_count)) {}
BlockPool::~BlockPool() = default;
BlockPool::BlockPool(BlockPool&&) noexcept = default;
BlockPool& BlockPool::operator=(BlockPool&&) noexcept = default;

std::uint32_t BlockPool::page_count() const {
  return static_cast<std::uint32_t>(state_->pages.size());
}

BlockPool::Counts BlockPool::counts() const {
  return {state_->free.count(), state_->held, state_->quarantined};
}

std::size_t BlockPool::lease_count() const { return state_->leases.size(); }

Result<LeaseId> BlockPool::allocate(std::uint32_t pages, std::int64_t deadline_ns) {
  if (pages == 0) return Status(Code::invalid_argument, "pool: a lease of no pages");
  if (pages > state_->free.count()) return Status(Code::exhausted, "pool: too few free pages");
  LeaseId id;
  Lease& lease = state_->new_lease(deadline_ns, id);
  state_->take(pages, lease.pages);
  return id;
}

Result<LeaseId> BlockPool::share(std::span<const PageRef> pages, std::int64_t deadline_ns) {
  if (pages.empty()) return Status(Code::invalid_argument, "pool: a lease of no pages");
  for (const PageRef& ref : pages) {
    if (!state_->is_held(ref)) return Status(Code::not_found, "pool: page is no longer held");
  }
  LeaseId id;
  Lease& lease = state_->new_lease(deadline_ns, id);
  for (const PageRef& ref : pages) {
    ++state_->pages[ref.page].users;
    lease.pages.push_back(ref.page);
  }
  return id;
}

Status BlockPool::extend(LeaseId lease, std::uint32_t pages) {
  Lease* const found = state_->leases.find(lease.value);
  if (found == nullptr) return kStaleLease;
  if (pages > state_->free.count()) return {Code::exhausted, "pool: too few free pages"};
  state_->take(pages, found->pages);
  return {};
}

Result<std::span<const std::uint32_t>> BlockPool::pages(LeaseId lease) const {
  const Lease* const found = state_->leases.find(lease.value);
  if (found == nullptr) return kStaleLease;
  return std::span<const std::uint32_t>(found->pages);
}

Result<PageRef> BlockPool::ref(std::uint32_t page) const {
  if (page >= state_->pages.size() || state_->pages[page].users == 0) {
    return Status(Code::not_found, "pool: page is not held");
  }
  return PageRef{page, state_->pages[page].generation};
}

bool BlockPool::held(PageRef ref) const { return state_->is_held(ref); }

Status BlockPool::set_deadline(LeaseId lease, std::int64_t deadline_ns) {
  Lease* const found = state_->leases.find(lease.value);
  if (found == nullptr) return kStaleLease;
  state_->remove_deadline(lease.value, found->deadline_ns);
  found->deadline_ns = deadline_ns;
  state_->add_deadline(lease.value, deadline_ns);
  return {};
}

Status BlockPool::expose(LeaseId lease) {
  Lease* const found = state_->leases.find(lease.value);
  if (found == nullptr) return kStaleLease;
  found->exposed = true;
  return {};
}

Status BlockPool::settle(LeaseId lease) {
  Lease* const found = state_->leases.find(lease.value);
  if (found == nullptr) return kStaleLease;
  found->exposed = false;
  return {};
}

Result<QuarantineToken> BlockPool::release(LeaseId lease) {
  Lease* const found = state_->leases.find(lease.value);
  if (found == nullptr) return kStaleLease;
  return state_->end(lease.value, *found);
}

void BlockPool::expire(std::int64_t now_ns, std::vector<ExpiredLease>& out) {
  out.clear();
  while (!state_->deadlines.empty() && state_->deadlines.begin()->first <= now_ns) {
    const std::uint64_t id = state_->deadlines.begin()->second;
    Lease* const lease = state_->leases.find(id);
    assert(lease != nullptr);
    out.push_back({LeaseId{id}, state_->end(id, *lease)});
  }
}

std::int64_t BlockPool::next_deadline_ns() const {
  return state_->deadlines.empty() ? kNoDeadline : state_->deadlines.begin()->first;
}

Status BlockPool::release_quarantine(QuarantineToken token) {
  Quarantine* const found = state_->quarantines.find(token.value);
  if (found == nullptr) return {Code::not_found, "pool: no such quarantine"};
  for (const std::uint32_t page : found->pages) state_->remove_unproven(page);
  state_->quarantines.erase(token.value);
  return {};
}

Status BlockPool::retain(PageRef page) {
  if (!state_->is_held(page)) return {Code::not_found, "pool: page is no longer held"};
  ++state_->pages[page.page].users;
  ++state_->pages[page.page].retains;
  return {};
}

Status BlockPool::drop(PageRef page) {
  if (!state_->is_held(page) || state_->pages[page.page].retains == 0) {
    return {Code::not_found, "pool: page is not retained"};
  }
  --state_->pages[page.page].retains;
  state_->remove_user(page.page);
  return {};
}

}  // namespace kvl
