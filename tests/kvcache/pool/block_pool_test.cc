// BlockPool: each rule by itself.
#include "kvl/block_pool.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvl {
namespace {

using Counts = BlockPool::Counts;

std::vector<std::uint32_t> list(const BlockPool& pool, LeaseId lease) {
  const auto pages = pool.pages(lease);
  EXPECT_TRUE(pages.ok());
  return {pages->begin(), pages->end()};
}

TEST(BlockPool, AllocatesNeighboursAndGivesThemBack) {
  BlockPool pool(100);
  EXPECT_EQ(pool.counts(), (Counts{100, 0, 0}));
  const auto a = pool.allocate(60);
  ASSERT_TRUE(a.ok());
  const std::vector<std::uint32_t> pages = list(pool, *a);
  for (std::uint32_t i = 0; i < 60; ++i) EXPECT_EQ(pages[i], i);
  EXPECT_EQ(pool.counts(), (Counts{40, 60, 0}));
  const auto token = pool.release(*a);
  ASSERT_TRUE(token.ok());
  EXPECT_FALSE(*token);
  EXPECT_EQ(pool.counts(), (Counts{100, 0, 0}));
}

TEST(BlockPool, ExhaustedChangesNothing) {
  BlockPool pool(10);
  const auto a = pool.allocate(7);
  EXPECT_EQ(pool.allocate(4).code(), Code::exhausted);
  EXPECT_EQ(pool.extend(*a, 4).code(), Code::exhausted);
  EXPECT_EQ(pool.counts(), (Counts{3, 7, 0}));
  EXPECT_EQ(pool.lease_count(), 1U);
  EXPECT_TRUE(pool.extend(*a, 3).ok());
  EXPECT_EQ(list(pool, *a).size(), 10U);
  EXPECT_EQ(pool.allocate(1).code(), Code::exhausted);
  EXPECT_EQ(pool.allocate(0).code(), Code::invalid_argument);
  EXPECT_EQ(BlockPool(0).allocate(1).code(), Code::exhausted);
}

TEST(BlockPool, StaleNamesAreRefused) {
  BlockPool pool(10);
  const auto a = pool.allocate(2);
  const auto ref = pool.ref(list(pool, *a)[0]);
  ASSERT_TRUE(ref.ok());
  EXPECT_TRUE(pool.held(*ref));
  ASSERT_TRUE(pool.release(*a).ok());

  EXPECT_EQ(pool.release(*a).code(), Code::not_found);
  EXPECT_EQ(pool.pages(*a).code(), Code::not_found);
  EXPECT_EQ(pool.extend(*a, 1).code(), Code::not_found);
  EXPECT_EQ(pool.expose(*a).code(), Code::not_found);
  EXPECT_EQ(pool.settle(*a).code(), Code::not_found);
  EXPECT_EQ(pool.set_deadline(*a, 5).code(), Code::not_found);
  EXPECT_EQ(pool.release(LeaseId{}).code(), Code::not_found);
  EXPECT_EQ(pool.release(LeaseId{~std::uint64_t{0}}).code(), Code::not_found);
  EXPECT_EQ(pool.release_quarantine(QuarantineToken{}).code(), Code::not_found);

  // The same page in its next life is another page.
  const auto b = pool.allocate(10);
  ASSERT_TRUE(b.ok());
  EXPECT_FALSE(pool.held(*ref));
  EXPECT_EQ(pool.share({&*ref, 1}).code(), Code::not_found);
  EXPECT_EQ(pool.retain(*ref).code(), Code::not_found);
  EXPECT_EQ(pool.drop(*ref).code(), Code::not_found);
  EXPECT_EQ(pool.ref(10).code(), Code::not_found);
  EXPECT_NE(pool.ref(ref->page)->generation, ref->generation);
}

TEST(BlockPool, SharedPagesEndWithTheLastUser) {
  BlockPool pool(10);
  const auto a = pool.allocate(3);
  std::vector<PageRef> refs;
  for (const std::uint32_t page : list(pool, *a)) refs.push_back(*pool.ref(page));
  const auto b = pool.share(refs);
  ASSERT_TRUE(b.ok());
  ASSERT_TRUE(pool.retain(refs[0]).ok());
  EXPECT_EQ(pool.counts(), (Counts{7, 3, 0}));
  ASSERT_TRUE(pool.release(*a).ok());
  EXPECT_EQ(pool.counts(), (Counts{7, 3, 0}));
  ASSERT_TRUE(pool.release(*b).ok());
  EXPECT_EQ(pool.counts(), (Counts{9, 1, 0}));
  ASSERT_TRUE(pool.drop(refs[0]).ok());
  EXPECT_EQ(pool.counts(), (Counts{10, 0, 0}));
  EXPECT_EQ(pool.drop(refs[0]).code(), Code::not_found);
}

TEST(BlockPool, DropTakesBackNoLease) {
  BlockPool pool(4);
  const auto a = pool.allocate(1);
  const PageRef ref = *pool.ref(list(pool, *a)[0]);
  EXPECT_EQ(pool.drop(ref).code(), Code::not_found);
  EXPECT_TRUE(pool.held(ref));
}

TEST(BlockPool, ExposedPagesAreQuarantinedUntilTheProof) {
  BlockPool pool(10);
  const auto a = pool.allocate(4);
  ASSERT_TRUE(pool.expose(*a).ok());
  const auto token = pool.release(*a);
  ASSERT_TRUE(token.ok());
  ASSERT_TRUE(*token);
  EXPECT_EQ(pool.counts(), (Counts{6, 0, 4}));
  EXPECT_EQ(pool.allocate(7).code(), Code::exhausted);
  EXPECT_EQ(pool.release_quarantine(QuarantineToken{token->value + 1}).code(), Code::not_found);
  ASSERT_TRUE(pool.release_quarantine(*token).ok());
  EXPECT_EQ(pool.counts(), (Counts{10, 0, 0}));
  EXPECT_EQ(pool.release_quarantine(*token).code(), Code::not_found);
}

TEST(BlockPool, SettledPagesAreFreeAtOnce) {
  BlockPool pool(10);
  const auto a = pool.allocate(4);
  ASSERT_TRUE(pool.expose(*a).ok());
  ASSERT_TRUE(pool.settle(*a).ok());
  EXPECT_FALSE(*pool.release(*a));
  EXPECT_EQ(pool.counts(), (Counts{10, 0, 0}));
}

TEST(BlockPool, SharedPageOfAnExposedLeaseIsQuarantinedLater) {
  BlockPool pool(10);
  const auto a = pool.allocate(2);
  const std::vector<PageRef> refs{*pool.ref(list(pool, *a)[0])};
  const auto b = pool.share(refs);
  ASSERT_TRUE(pool.expose(*a).ok());
  const auto token = pool.release(*a);
  EXPECT_EQ(pool.counts(), (Counts{8, 1, 1}));
  ASSERT_TRUE(pool.release(*b).ok());
  EXPECT_EQ(pool.counts(), (Counts{8, 0, 2}));
  ASSERT_TRUE(pool.release_quarantine(*token).ok());
  EXPECT_EQ(pool.counts(), (Counts{10, 0, 0}));
}

TEST(BlockPool, APageOfTwoExposedLeasesNeedsBothProofs) {
  BlockPool pool(10);
  const auto a = pool.allocate(2);
  const std::vector<PageRef> refs{*pool.ref(list(pool, *a)[0])};
  const auto b = pool.share(refs);
  ASSERT_TRUE(pool.expose(*a).ok());
  ASSERT_TRUE(pool.expose(*b).ok());
  const auto of_a = pool.release(*a), of_b = pool.release(*b);
  EXPECT_EQ(pool.counts(), (Counts{8, 0, 2}));
  ASSERT_TRUE(pool.release_quarantine(*of_a).ok());
  EXPECT_EQ(pool.counts(), (Counts{9, 0, 1})) << "the other peer may still write it";
  EXPECT_EQ(pool.allocate(10).code(), Code::exhausted);
  ASSERT_TRUE(pool.release_quarantine(*of_b).ok());
  EXPECT_EQ(pool.counts(), (Counts{10, 0, 0}));
}

TEST(BlockPool, DeadlinesEndLeasesInOrder) {
  BlockPool pool(10);
  const auto late = pool.allocate(1, 30);
  const auto early = pool.allocate(1, 10);
  const auto moved = pool.allocate(1, 5);
  const auto endless = pool.allocate(1);
  ASSERT_TRUE(pool.set_deadline(*moved, 20).ok());
  ASSERT_TRUE(pool.expose(*moved).ok());
  EXPECT_EQ(pool.next_deadline_ns(), 10);
  std::vector<ExpiredLease> expired;
  pool.expire(9, expired);
  EXPECT_TRUE(expired.empty());
  pool.expire(20, expired);
  ASSERT_EQ(expired.size(), 2U);
  EXPECT_EQ(expired[0].lease, *early);
  EXPECT_FALSE(expired[0].quarantine);
  EXPECT_EQ(expired[1].lease, *moved);
  EXPECT_TRUE(expired[1].quarantine) << "a peer may still write";
  EXPECT_EQ(pool.counts(), (Counts{7, 2, 1}));
  EXPECT_EQ(pool.next_deadline_ns(), 30);
  ASSERT_TRUE(pool.set_deadline(*late, BlockPool::kNoDeadline).ok());
  pool.expire(BlockPool::kNoDeadline - 1, expired);
  EXPECT_TRUE(expired.empty());
  EXPECT_EQ(pool.next_deadline_ns(), BlockPool::kNoDeadline);
  EXPECT_TRUE(pool.release(*endless).ok());
  EXPECT_TRUE(pool.release(*late).ok());
}

}  // namespace
}  // namespace kvl
