// What every store promises, in memory and in etcd.
#include <gtest/gtest.h>

#include <atomic>

#include "router/bootstrap/etcd_store.h"
#include "router/bootstrap/memory_store.h"
#include "tests/router/etcd/etcd_cluster.h"
#include "tests/router/etcd/store_rig.h"
#include "tests/support/log_guard.h"

namespace kvl::bootstrap::test {
namespace {

constexpr std::uint64_t kRecordsMax = 20;

// One member for the whole suite; each test has a prefix of its own.
kvl::test::EtcdCluster& cluster() {
  static kvl::test::EtcdCluster instance;
  return instance;
}

class StoreContract : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const bool etcd = GetParam() == std::string_view("etcd");
    if (etcd && !kvl::test::EtcdCluster::installed()) {
      GTEST_SKIP() << "etcd is not installed: tools/setup.sh --tests";
    }
    rig_ = std::make_unique<StoreRig>(
        [&](http::Loop& loop, const Clock& clock) -> std::unique_ptr<Store> {
          if (!etcd) return std::make_unique<MemoryStore>(clock, 1, kRecordsMax);
          static std::atomic<int> tests{0};
          EtcdStoreOptions options;
          options.client.endpoints = {*http::parse_url(cluster().url(0))};
          options.client.timeout_ms = 20000;
          options.prefix = "/contract" + std::to_string(tests++) + "/";
          options.records_max = kRecordsMax;
          options.seed = static_cast<std::uint64_t>(::getpid()) * 1000 +
                         static_cast<std::uint64_t>(tests.load());
          return std::make_unique<EtcdStore>(loop, clock, std::move(options));
        },
        [etcd](Store& store) {
          if (etcd) static_cast<EtcdStore&>(store).stop();
        });
    ASSERT_TRUE(rig_->wait_current());
  }

  std::uint64_t revision(const std::string& key) {
    const auto found = rig_->get(key);
    return found.ok() && found->has_value() ? (*found)->revision : 0;
  }

  std::unique_ptr<StoreRig> rig_;
};

TEST_P(StoreContract, WhatIsPutIsThereAtOnceAndInOrder) {
  EXPECT_EQ(rig_->value("a/1"), "");
  ASSERT_TRUE(rig_->put("a/2", "two").ok());
  EXPECT_EQ(rig_->value("a/2"), "two");
  const std::string bytes("\0\xff\n\"binary", 10);
  ASSERT_TRUE(rig_->put("a/1", bytes).ok());
  ASSERT_TRUE(rig_->put("b", "other").ok());
  EXPECT_EQ(rig_->value("a/1"), bytes);
  EXPECT_EQ(rig_->keys("a/"), "a/1 a/2 ");
  EXPECT_EQ(rig_->keys(""), "a/1 a/2 b ");
  EXPECT_EQ(rig_->keys("c"), "");
}

TEST_P(StoreContract, APutNeedsTheRevisionThatIsThere) {
  ASSERT_TRUE(rig_->put("k", "1").ok());
  const std::uint64_t first = revision("k");
  EXPECT_NE(first, 0u);
  EXPECT_EQ(rig_->put("k", "2").code(), Code::aborted) << "it exists";
  EXPECT_EQ(rig_->put("k", "2", kNoLease, first + 1).code(), Code::aborted);
  EXPECT_EQ(rig_->put("new", "2", kNoLease, first).code(), Code::aborted) << "it does not exist";
  EXPECT_EQ(rig_->value("k"), "1");
  ASSERT_TRUE(rig_->put("k", "2", kNoLease, first).ok());
  EXPECT_GT(revision("k"), first);
  ASSERT_TRUE(rig_->put("other", "x").ok());
  EXPECT_GT(revision("other"), revision("k")) << "revisions grow over all keys";
}

TEST_P(StoreContract, AnErasedKeyIsGoneAndMayComeBack) {
  ASSERT_TRUE(rig_->put("k", "1").ok());
  ASSERT_TRUE(rig_->erase("k").ok());
  EXPECT_EQ(rig_->value("k"), "");
  EXPECT_TRUE(rig_->erase("k").ok());
  ASSERT_TRUE(rig_->put("k", "2").ok());
  EXPECT_EQ(rig_->value("k"), "2");
}

TEST_P(StoreContract, KeysEndWithTheirLease) {
  const auto lease = rig_->grant(60000);
  const auto other = rig_->grant(60000);
  ASSERT_TRUE(lease.ok() && other.ok());
  EXPECT_NE(*lease, *other);
  ASSERT_TRUE(rig_->put("a", "1", *lease).ok());
  ASSERT_TRUE(rig_->put("b", "1", *lease).ok());
  ASSERT_TRUE(rig_->put("c", "1", *other).ok());
  ASSERT_TRUE(rig_->put("b", "2", *other, revision("b")).ok()) << "moves to the other lease";
  EXPECT_TRUE(rig_->revoke(*lease).ok());
  EXPECT_EQ(rig_->keys(""), "b c ");
  EXPECT_EQ(rig_->revoke(*lease).code(), Code::not_found);
  EXPECT_EQ(rig_->keep_alive(*lease).code(), Code::not_found);
  EXPECT_EQ(rig_->put("d", "1", *lease).code(), Code::not_found);
  EXPECT_TRUE(rig_->keep_alive(*other).ok());
}

TEST_P(StoreContract, ALeaseEndsUnlessItIsRenewed) {
  // etcd's shortest lease is about two seconds, whatever is asked for.
  const auto kept = rig_->grant(2000);
  const auto left = rig_->grant(1000);
  ASSERT_TRUE(rig_->put("kept", "1", *kept).ok());
  ASSERT_TRUE(rig_->put("left", "1", *left).ok());
  EXPECT_TRUE(eventually([&] {
    EXPECT_TRUE(rig_->keep_alive(*kept).ok());
    return rig_->value("left").empty();
  }));
  EXPECT_EQ(rig_->value("kept"), "1");
  EXPECT_EQ(rig_->keep_alive(*left).code(), Code::not_found);
  EXPECT_TRUE(eventually([&] { return rig_->value("kept").empty(); })) << "nobody renews it now";
}

TEST_P(StoreContract, KeysAreBounded) {
  for (std::uint64_t i = 0; i < kRecordsMax; ++i) {
    ASSERT_TRUE(rig_->put("k" + std::to_string(i), "v").ok()) << i;
  }
  EXPECT_EQ(rig_->put("one more", "v").code(), Code::exhausted);
  EXPECT_TRUE(rig_->put("k1", "new", kNoLease, revision("k1")).ok()) << "it takes no room";
  EXPECT_TRUE(rig_->erase("k1").ok());
  EXPECT_TRUE(rig_->put("one more", "v").ok());
}

TEST_P(StoreContract, LeasesAreBounded) {
  for (std::uint64_t i = 0; i < kRecordsMax; ++i) ASSERT_TRUE(rig_->grant(60000).ok()) << i;
  EXPECT_EQ(rig_->grant(60000).code(), Code::exhausted);
}

TEST_P(StoreContract, ManyKeysAndLargeValues) {
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(rig_->put("large" + std::to_string(i), std::string(1 << 20, 'x')).ok());
  }
  EXPECT_EQ(rig_->value("large7").size(), std::size_t{1} << 20);
}

INSTANTIATE_TEST_SUITE_P(Stores, StoreContract, ::testing::Values("memory", "etcd"),
                         [](const auto& each) { return std::string(each.param); });

}  // namespace
}  // namespace kvl::bootstrap::test
