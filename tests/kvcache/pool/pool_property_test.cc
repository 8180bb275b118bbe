// BlockPool in random use against a model that only keeps sets.
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "kvl/block_pool.h"

namespace kvl {
namespace {

using Counts = BlockPool::Counts;

std::vector<std::uint32_t> list(const BlockPool& pool, LeaseId lease) {
  const auto pages = pool.pages(lease);
  EXPECT_TRUE(pages.ok());
  return {pages->begin(), pages->end()};
}

// What the pool promises, kept as plainly as possible.
struct Model {
  struct Lease {
    std::vector<std::uint32_t> pages;
    std::int64_t deadline_ns = BlockPool::kNoDeadline;
    bool exposed = false;
  };
  std::map<std::uint64_t, Lease> leases;
  std::map<std::uint64_t, std::vector<std::uint32_t>> quarantines;
  std::multiset<std::uint32_t> retained;

  std::set<std::uint32_t> held() const {
    std::set<std::uint32_t> pages(retained.begin(), retained.end());
    for (const auto& [id, lease] : leases) pages.insert(lease.pages.begin(), lease.pages.end());
    return pages;
  }
  std::set<std::uint32_t> quarantined() const {
    std::set<std::uint32_t> pages;
    for (const auto& [id, list] : quarantines) pages.insert(list.begin(), list.end());
    for (const std::uint32_t page : held()) pages.erase(page);
    return pages;
  }
  void end(std::uint64_t id, QuarantineToken token) {
    const Lease lease = leases.at(id);
    EXPECT_EQ(static_cast<bool>(token), lease.exposed);
    if (lease.exposed) {
      EXPECT_FALSE(quarantines.contains(token.value));
      quarantines[token.value] = lease.pages;
    }
    leases.erase(id);
  }
};

class PoolWalk {
 public:
  explicit PoolWalk(std::uint64_t seed) : random_(seed) {}

  void step() {
    switch (below(10)) {
      case 0:
      case 1:
        allocate();
        break;
      case 2:
        share();
        break;
      case 3:
        extend();
        break;
      case 4:
        change_lease();
        break;
      case 5:
      case 6:
        release();
        break;
      case 7:
        expire();
        break;
      case 8:
        prove();
        break;
      default:
        retain_or_drop();
        break;
    }
    check();
  }

 private:
  static constexpr std::uint32_t kPages = 70;

  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }
  std::uint32_t small() { return static_cast<std::uint32_t>(1 + below(12)); }
  std::int64_t deadline() {
    return below(2) == 0 ? BlockPool::kNoDeadline : now_ns_ + static_cast<std::int64_t>(below(50));
  }
  std::uint32_t free() const {
    return kPages - static_cast<std::uint32_t>(model_.held().size() + model_.quarantined().size());
  }
  template <typename Map>
  std::uint64_t any_key(const Map& map) {
    return std::next(map.begin(), static_cast<std::ptrdiff_t>(below(map.size())))->first;
  }

  // New pages must be free ones, each once.
  void check_new(const std::vector<std::uint32_t>& pages) {
    const std::set<std::uint32_t> held = model_.held();
    const std::set<std::uint32_t> quarantined = model_.quarantined();
    const std::set<std::uint32_t> distinct(pages.begin(), pages.end());
    ASSERT_EQ(distinct.size(), pages.size());
    for (const std::uint32_t page : pages) {
      ASSERT_LT(page, kPages);
      ASSERT_FALSE(held.contains(page));
      ASSERT_FALSE(quarantined.contains(page)) << "a peer may still write there";
    }
  }

  void allocate() {
    const std::uint32_t pages = small();
    const std::int64_t until = deadline();
    const auto lease = pool_.allocate(pages, until);
    ASSERT_EQ(lease.code(), pages <= free() ? Code::ok : Code::exhausted);
    if (!lease.ok()) return;
    const std::vector<std::uint32_t> got = list(pool_, *lease);
    ASSERT_EQ(got.size(), pages);
    check_new(got);
    model_.leases[lease->value] = {got, until, false};
  }

  void share() {
    if (model_.leases.empty()) return;
    const auto& from = model_.leases[any_key(model_.leases)].pages;
    std::vector<PageRef> refs;
    std::vector<std::uint32_t> pages;
    for (std::size_t i = 0; i <= below(from.size()); ++i) {
      refs.push_back(*pool_.ref(from[i]));
      pages.push_back(from[i]);
    }
    const bool stale = below(4) == 0;
    if (stale) --refs.back().generation;
    const std::int64_t until = deadline();
    const auto lease = pool_.share(refs, until);
    ASSERT_EQ(lease.code(), stale ? Code::not_found : Code::ok);
    if (lease.ok()) model_.leases[lease->value] = {pages, until, false};
  }

  void extend() {
    if (model_.leases.empty()) return;
    const std::uint64_t id = any_key(model_.leases);
    const std::uint32_t pages = small();
    const Status status = pool_.extend(LeaseId{id}, pages);
    ASSERT_EQ(status.code(), pages <= free() ? Code::ok : Code::exhausted);
    if (!status.ok()) return;
    std::vector<std::uint32_t>& known = model_.leases[id].pages;
    const std::vector<std::uint32_t> got = list(pool_, LeaseId{id});
    ASSERT_EQ(got.size(), known.size() + pages);
    ASSERT_TRUE(std::equal(known.begin(), known.end(), got.begin()));
    check_new({got.begin() + static_cast<std::ptrdiff_t>(known.size()), got.end()});
    known = got;
  }

  void change_lease() {
    if (model_.leases.empty()) return;
    const std::uint64_t id = any_key(model_.leases);
    Model::Lease& lease = model_.leases[id];
    switch (below(3)) {
      case 0:
        lease.exposed = true;
        ASSERT_TRUE(pool_.expose(LeaseId{id}).ok());
        break;
      case 1:
        lease.exposed = false;
        ASSERT_TRUE(pool_.settle(LeaseId{id}).ok());
        break;
      default:
        lease.deadline_ns = deadline();
        ASSERT_TRUE(pool_.set_deadline(LeaseId{id}, lease.deadline_ns).ok());
        break;
    }
  }

  void release() {
    if (!dead_.empty()) {
      ASSERT_EQ(pool_.release(LeaseId{dead_[below(dead_.size())]}).code(), Code::not_found);
    }
    if (model_.leases.empty()) return;
    const std::uint64_t id = any_key(model_.leases);
    const auto token = pool_.release(LeaseId{id});
    ASSERT_TRUE(token.ok());
    model_.end(id, *token);
    dead_.push_back(id);
  }

  void expire() {
    now_ns_ += static_cast<std::int64_t>(below(20));
    std::set<std::uint64_t> due;
    for (const auto& [id, lease] : model_.leases) {
      if (lease.deadline_ns <= now_ns_) due.insert(id);
    }
    std::vector<ExpiredLease> expired;
    pool_.expire(now_ns_, expired);
    ASSERT_EQ(expired.size(), due.size());
    for (const ExpiredLease& e : expired) {
      ASSERT_EQ(due.erase(e.lease.value), 1U);
      model_.end(e.lease.value, e.quarantine);
      dead_.push_back(e.lease.value);
    }
  }

  void prove() {
    if (model_.quarantines.empty()) return;
    const std::uint64_t id = any_key(model_.quarantines);
    ASSERT_TRUE(pool_.release_quarantine(QuarantineToken{id}).ok());
    ASSERT_EQ(pool_.release_quarantine(QuarantineToken{id}).code(), Code::not_found);
    model_.quarantines.erase(id);
  }

  void retain_or_drop() {
    const auto page = static_cast<std::uint32_t>(below(kPages));
    const auto ref = pool_.ref(page);
    ASSERT_EQ(ref.ok(), model_.held().contains(page));
    if (!ref.ok()) return;
    if (below(2) == 0) {
      ASSERT_TRUE(pool_.retain(*ref).ok());
      model_.retained.insert(page);
      return;
    }
    const auto known = model_.retained.find(page);
    ASSERT_EQ(pool_.drop(*ref).ok(), known != model_.retained.end());
    if (known != model_.retained.end()) model_.retained.erase(known);
  }

  void check() {
    const std::set<std::uint32_t> held = model_.held();
    const Counts counts = pool_.counts();
    ASSERT_EQ(counts.held, held.size());
    ASSERT_EQ(counts.quarantined, model_.quarantined().size());
    ASSERT_EQ(counts.free, free());
    ASSERT_EQ(counts.free + counts.held + counts.quarantined, kPages);
    ASSERT_EQ(pool_.lease_count(), model_.leases.size());
    for (std::uint32_t page = 0; page < kPages; ++page) {
      ASSERT_EQ(pool_.ref(page).ok(), held.contains(page));
    }
  }

  std::mt19937_64 random_;
  BlockPool pool_{kPages};
  Model model_;
  std::int64_t now_ns_ = 0;
  std::vector<std::uint64_t> dead_;
};

TEST(BlockPoolProperty, AgreesWithTheModel) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  for (std::uint64_t run = 0; run < 20; ++run) {
    PoolWalk walk(seed + run);
    for (int i = 0; i < 500; ++i) {
      walk.step();
      ASSERT_FALSE(::testing::Test::HasFatalFailure()) << "seed " << seed + run << " step " << i;
    }
  }
}

}  // namespace
}  // namespace kvl
