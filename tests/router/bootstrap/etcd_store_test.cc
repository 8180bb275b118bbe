// The store in etcd in the moments that a real cluster shows seldom: etcd knows what the store has
// not heard yet, or the store knows what etcd has forgotten.
#include "router/bootstrap/etcd_store.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "tests/router/bootstrap/fake_etcd.h"
#include "tests/router/etcd/store_rig.h"
#include "tests/support/log_guard.h"

namespace kvl::bootstrap::test {
namespace {

const std::string kPrefix = "/kvlane/";

// Real time, and what the test adds to it.
class SkippingClock final : public Clock {
 public:
  std::int64_t now_ns() const override { return real_.now_ns() + skipped_ns_; }
  void skip_ms(std::int64_t ms) { skipped_ns_ += ms * 1'000'000; }

 private:
  SteadyClock real_;
  std::atomic<std::int64_t> skipped_ns_{0};
};

class EtcdStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(rig_.wait_current());
    hear_all();  // the watch stands
  }

  // What etcd has told before this is known here after it.
  void hear_all() {
    const std::string text = std::to_string(++heard_);
    ASSERT_TRUE(eventually([&] {
      etcd_.put(kPrefix + "marker", text);
      return rig_.value("marker") == text;
    }));
  }
  std::string in_etcd(const std::string& key) { return etcd_.value(kPrefix + key); }
  std::uint64_t revision(const std::string& key) { return (*rig_.get(key))->revision; }
  bool restored(int leases) {
    return eventually(
        [&] { return rig_.metric("kvlane_bootstrap_etcd_leases_restored_total") == leases; });
  }

  const kvl::test::ExpectLog away_{"bootstrap.etcd_"};
  SkippingClock clock_;
  kvl::test::FakeEtcd etcd_;
  EtcdStore* store_ = nullptr;  // of the rig, for its loop
  StoreRig rig_{[this](http::Loop& loop, const Clock&) {
                  EtcdStoreOptions options;
                  options.client.endpoints = {*http::parse_url(etcd_.url())};
                  options.client.timeout_ms = 20000;
                  options.probe_ms = 50;
                  options.prefix = kPrefix;
                  auto store = std::make_unique<EtcdStore>(loop, clock_, std::move(options));
                  store_ = store.get();
                  return store;
                },
                [](Store& store) { static_cast<EtcdStore&>(store).stop(); }};
  int heard_ = 0;
};

TEST_F(EtcdStoreTest, APutTakesNothingFromWhoWasFaster) {
  ASSERT_TRUE(rig_.put("k", "1").ok());
  const std::uint64_t known = revision("k");
  etcd_.hold_watches(true);
  etcd_.put(kPrefix + "k", "faster");
  EXPECT_EQ(rig_.put("k", "2", kNoLease, known).code(), Code::aborted);
  EXPECT_EQ(in_etcd("k"), "faster");
  EXPECT_EQ(rig_.value("k"), "faster") << "the answer says what is there";
  EXPECT_TRUE(rig_.put("k", "2", kNoLease, revision("k")).ok());
  EXPECT_EQ(in_etcd("k"), "2");
}

TEST_F(EtcdStoreTest, WhileReadsFailNothingNewIsTaken) {
  const auto lease = rig_.grant(60000);
  ASSERT_TRUE(rig_.put("k", "v", *lease).ok());
  etcd_.fail_reads(true);
  ASSERT_TRUE(eventually([&] { return !rig_.health().reachable; }));
  const std::size_t grants = etcd_.calls("/v3/lease/grant"), puts = etcd_.calls("/v3/kv/txn");
  EXPECT_EQ(rig_.grant(60000).code(), Code::unavailable);
  EXPECT_EQ(rig_.put("new", "v").code(), Code::unavailable);
  EXPECT_EQ(etcd_.calls("/v3/lease/grant"), grants) << "told at once, nobody was asked";
  EXPECT_EQ(etcd_.calls("/v3/kv/txn"), puts);
  EXPECT_TRUE(rig_.keep_alive(*lease).ok());
  EXPECT_EQ(rig_.value("k"), "v");
  etcd_.fail_reads(false);
  ASSERT_TRUE(eventually([&] { return rig_.health().reachable; }));
  EXPECT_TRUE(rig_.put("new", "v").ok());
}

TEST_F(EtcdStoreTest, WhatHappensBetweenListAndWatchIsNotMissed) {
  // Another store begins, and its watch comes a change after its list.
  etcd_.before_watch([this] { etcd_.put(kPrefix + "between", "v"); });
  StoreRig late(
      [this](http::Loop& loop, const Clock&) {
        EtcdStoreOptions options;
        options.client.endpoints = {*http::parse_url(etcd_.url())};
        options.client.timeout_ms = 20000;
        options.prefix = kPrefix;
        return std::make_unique<EtcdStore>(loop, clock_, std::move(options));
      },
      [](Store& store) { static_cast<EtcdStore&>(store).stop(); });
  ASSERT_TRUE(late.wait_current());
  etcd_.put(kPrefix + "after", "v");
  ASSERT_TRUE(eventually([&] { return late.value("after") == "v"; }));
  EXPECT_EQ(late.value("between"), "v");
}

TEST_F(EtcdStoreTest, WhatEtcdLosesOfALivingRankIsKeptAndPutBack) {
  const auto lease = rig_.grant(60000);
  ASSERT_TRUE(rig_.put("rank", "v", *lease).ok());
  etcd_.end_lease(*lease);
  hear_all();
  EXPECT_EQ(in_etcd("rank"), "");
  EXPECT_EQ(rig_.value("rank"), "v");
  EXPECT_TRUE(rig_.keep_alive(*lease).ok());
  ASSERT_TRUE(restored(1));
  EXPECT_EQ(in_etcd("rank"), "v");
}

TEST_F(EtcdStoreTest, ALeaseThatIsPutBackTakesNothingFromASuccessor) {
  const auto lease = rig_.grant(60000);
  ASSERT_TRUE(rig_.put("rank", "old", *lease).ok());
  etcd_.hold_watches(true);  // of neither of the two is anything heard
  etcd_.end_lease(*lease);
  etcd_.put(kPrefix + "rank", "successor");
  EXPECT_EQ(rig_.value("rank"), "old");
  EXPECT_TRUE(rig_.keep_alive(*lease).ok());
  ASSERT_TRUE(restored(1));
  EXPECT_EQ(in_etcd("rank"), "successor");
  EXPECT_EQ(rig_.value("rank"), "successor");
}

TEST_F(EtcdStoreTest, ALeaseIsNotRenewedAfterItsEnd) {
  const auto lease = rig_.grant(60000);
  ASSERT_TRUE(rig_.put("rank", "v", *lease).ok());
  etcd_.hold_watches(true);
  etcd_.end_lease(*lease);
  const auto answer = std::make_shared<std::promise<Status>>();
  rig_.post([&, answer] {  // in one go, before the store looks at its leases by itself
    clock_.skip_ms(60001);
    store_->keep_alive(*lease, [answer](const Status& status) { answer->set_value(status); });
  });
  EXPECT_EQ(answer->get_future().get().code(), Code::not_found);
  etcd_.hold_watches(false);
  EXPECT_TRUE(eventually([&] { return rig_.value("rank").empty(); }));
}

}  // namespace
}  // namespace kvl::bootstrap::test
