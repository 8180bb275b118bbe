// The store when etcd misbehaves: members killed, paused, restarted, compacted, wiped.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "router/bootstrap/etcd_store.h"
#include "router/bootstrap/etcd_wire.h"
#include "router/http/url.h"
#include "tests/router/etcd/etcd_cluster.h"
#include "tests/router/etcd/store_rig.h"
#include "tests/support/log_guard.h"

namespace kvl::bootstrap::test {
namespace {

using kvl::test::EtcdCluster;
using kvl::test::ExpectLog;

EtcdStoreOptions options_for(const EtcdCluster& cluster, std::uint64_t seed) {
  EtcdStoreOptions options;
  for (int i = 0; i < cluster.members(); ++i) {
    options.client.endpoints.push_back(*http::parse_url(cluster.url(i)));
  }
  options.client.timeout_ms = 3000;
  options.probe_ms = 100;
  options.seed = seed;
  return options;
}

std::unique_ptr<StoreRig> rig_with(EtcdStoreOptions options) {
  return std::make_unique<StoreRig>(
      [&](http::Loop& loop, const Clock& clock) {
        return std::make_unique<EtcdStore>(loop, clock, std::move(options));
      },
      [](Store& store) { static_cast<EtcdStore&>(store).stop(); });
}

std::unique_ptr<StoreRig> rig_over(const EtcdCluster& cluster, std::uint64_t seed = 1) {
  auto rig = rig_with(options_for(cluster, seed));
  EXPECT_TRUE(rig->wait_current());
  return rig;
}

bool put_eventually(StoreRig& rig, const std::string& key, const std::string& value) {
  return eventually([&] {
    const Status put = rig.put(key, value);
    return put.ok() || rig.value(key) == value;
  });
}

class Etcd : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!EtcdCluster::installed()) GTEST_SKIP() << "etcd is not installed: tools/setup.sh --tests";
  }
  const ExpectLog away_{"bootstrap.etcd_"};
};

TEST_F(Etcd, TwoStoresAgree) {
  EtcdCluster cluster;
  const auto a = rig_over(cluster, 1), b = rig_over(cluster, 2);
  const auto lease = a->grant(60000);
  ASSERT_TRUE(a->put("k", "from a", *lease).ok());
  EXPECT_TRUE(eventually([&] { return b->value("k") == "from a"; }));
  EXPECT_EQ(b->put("k", "from b").code(), Code::aborted) << "it is there already";
  ASSERT_TRUE(a->revoke(*lease).ok());
  EXPECT_TRUE(eventually([&] { return b->value("k").empty(); }));
  const auto moved = a->grant(60000);
  ASSERT_TRUE(a->put("moved", "1", *moved).ok());
  EXPECT_TRUE(b->keep_alive(*moved).ok()) << "a lease is known wherever it is renewed";
  ASSERT_TRUE(b->put("plain", "1").ok());
  ASSERT_TRUE(eventually([&] { return a->value("plain") == "1"; }));
  ASSERT_TRUE(a->erase("plain").ok());
  EXPECT_TRUE(eventually([&] { return b->value("plain").empty(); }));
  // A third one, later, finds it all by its list.
  ASSERT_TRUE(a->put("late", "1").ok());
  EXPECT_EQ(rig_over(cluster, 3)->value("late"), "1");
}

TEST_F(Etcd, WhileItIsAwayWhatIsKnownIsServedAndNothingExpires) {
  EtcdCluster cluster;
  const auto rig = rig_over(cluster);
  const auto lease = rig->grant(2000);
  ASSERT_TRUE(rig->put("k", "v", *lease).ok());
  cluster.kill(0);
  ASSERT_TRUE(eventually([&] { return !rig->health().reachable; }));
  EXPECT_EQ(rig->put("new", "v").code(), Code::unavailable);
  EXPECT_EQ(rig->grant(1000).code(), Code::unavailable);
  EXPECT_EQ(rig->metric("kvlane_bootstrap_etcd_reachable"), 0);
  // Longer than the lease: its rank goes on renewing, and nothing is lost.
  EXPECT_TRUE(eventually([&] {
    EXPECT_TRUE(rig->keep_alive(*lease).ok());
    EXPECT_EQ(rig->value("k"), "v");
    return rig->health().stale_ms > 2500;
  }));
  cluster.start(0);
  ASSERT_TRUE(eventually([&] {
    EXPECT_TRUE(rig->keep_alive(*lease).ok());
    return rig->health().reachable;
  }));
  EXPECT_EQ(rig->value("k"), "v");
  EXPECT_TRUE(put_eventually(*rig, "new", "v"));
  EXPECT_EQ(rig->metric("kvlane_bootstrap_etcd_outages_total"), 1);
}

TEST_F(Etcd, AStoreThatStartsWhileEtcdIsAwaySaysThatItKnowsNothing) {
  EtcdCluster cluster;
  ASSERT_TRUE(rig_over(cluster)->put("k", "v").ok());
  cluster.kill(0);
  const auto rig = rig_with(options_for(cluster, 2));
  EXPECT_TRUE(eventually([&] { return rig->metric("kvlane_bootstrap_etcd_outages_total") == 1; }));
  EXPECT_EQ(rig->get("k").code(), Code::unavailable) << "not the same as: there is none";
  EXPECT_FALSE(rig->health().loaded);
  cluster.start(0);
  EXPECT_TRUE(eventually([&] { return rig->value("k") == "v"; }));
}

TEST_F(Etcd, ALeaseThatEtcdLosesIsGrantedAgainToALivingRank) {
  EtcdCluster cluster;
  const auto rig = rig_over(cluster, 1), other = rig_over(cluster, 2);
  const auto living = rig->grant(60000), dead = rig->grant(2000);
  ASSERT_TRUE(rig->put("living", "1", *living).ok());
  ASSERT_TRUE(rig->put("dead", "1", *dead).ok());
  ASSERT_TRUE(eventually([&] { return rig->value("dead").empty(); }));
  // Behind the store's back, as if etcd had not heard of the rank for too long.
  cluster.call(0, "/v3/lease/revoke", etcd::encode_lease(*living));
  EXPECT_TRUE(eventually([&] { return other->value("living").empty(); })) << "until it renews";
  EXPECT_TRUE(eventually([&] {
    EXPECT_TRUE(rig->keep_alive(*living).ok());
    EXPECT_EQ(rig->value("living"), "1");
    return rig->metric("kvlane_bootstrap_etcd_leases_restored_total") == 1;
  }));
  EXPECT_TRUE(eventually([&] { return other->value("living") == "1"; }));
  EXPECT_TRUE(rig->keep_alive(*living).ok());
  EXPECT_EQ(rig->keep_alive(*dead).code(), Code::not_found);
}

TEST_F(Etcd, ARestoredLeaseDoesNotPushOutASuccessor) {
  EtcdCluster cluster;
  const auto old = rig_over(cluster, 1), fresh = rig_over(cluster, 2);
  const auto old_lease = old->grant(60000), new_lease = fresh->grant(60000);
  ASSERT_TRUE(old->put("rank", "old", *old_lease).ok());
  ASSERT_TRUE(eventually([&] { return fresh->value("rank") == "old"; }));
  const std::uint64_t revision = (*fresh->get("rank"))->revision;
  ASSERT_TRUE(fresh->put("rank", "new", *new_lease, revision).ok());
  cluster.call(0, "/v3/lease/revoke", etcd::encode_lease(*old_lease));
  ASSERT_TRUE(old->keep_alive(*old_lease).ok());
  EXPECT_TRUE(
      eventually([&] { return old->metric("kvlane_bootstrap_etcd_leases_restored_total") == 1; }));
  EXPECT_TRUE(eventually([&] { return old->value("rank") == "new"; }));
  EXPECT_EQ(fresh->value("rank"), "new");
}

TEST_F(Etcd, CompactedHistoryIsReadAnew) {
  EtcdCluster cluster;
  const auto rig = rig_over(cluster, 1), writer = rig_over(cluster, 2);
  ASSERT_TRUE(writer->put("before", "1").ok());
  ASSERT_TRUE(eventually([&] { return rig->value("before") == "1"; }));
  const double lists = rig->metric("kvlane_bootstrap_etcd_lists_total");
  // The store's loop stands still while history is made, compacted, and its watch broken.
  kvl::test::Gate gate;
  rig->post([&gate] { gate.wait(); });
  ASSERT_TRUE(writer->erase("before").ok());
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(writer->put("k" + std::to_string(i), "v").ok());
  const std::uint64_t now = (*writer->get("k19"))->revision;
  const std::string compacted = cluster.call(
      0, "/v3/kv/compaction", "{\"revision\":\"" + std::to_string(now) + "\",\"physical\":true}");
  EXPECT_NE(compacted.find("revision"), std::string::npos) << compacted;
  cluster.kill(0);
  cluster.start(0);
  ASSERT_TRUE(cluster.wait_ready());
  gate.open();
  EXPECT_TRUE(eventually([&] { return rig->value("k19") == "v"; }));
  EXPECT_EQ(rig->value("before"), "");
  EXPECT_GE(rig->metric("kvlane_bootstrap_etcd_lists_total"), lists);
}

TEST_F(Etcd, AClusterThatForgotEverythingIsFilledAgain) {
  EtcdCluster cluster;
  const auto rig = rig_over(cluster);
  const auto lease = rig->grant(60000);
  ASSERT_TRUE(rig->put("living", "1", *lease).ok());
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(rig->put("orphan" + std::to_string(i), "1").ok());
  cluster.kill(0);
  cluster.wipe(0);
  cluster.start(0);
  EXPECT_TRUE(eventually([&] { return rig->keys("orphan").empty(); }));
  EXPECT_TRUE(
      eventually([&] { return rig->metric("kvlane_bootstrap_etcd_leases_restored_total") >= 1; }));
  EXPECT_EQ(rig->value("living"), "1");
  EXPECT_EQ(rig_over(cluster, 2)->value("living"), "1");
}

// The members of one cluster in turn: the one in use killed, the leader killed, one standing still,
// all of them killed and started again. After each the store writes, and another one sees it.
TEST_F(Etcd, MembersMayComeAndGo) {
  EtcdCluster cluster({.members = 3});
  const auto rig = rig_over(cluster, 1), other = rig_over(cluster, 2);
  const auto lease = rig->grant(60000);
  ASSERT_TRUE(rig->put("rank", "v", *lease).ok());
  const auto works = [&](const std::string& key) {
    return put_eventually(*rig, key, "v") && eventually([&] { return other->value(key) == "v"; }) &&
           rig->value("rank") == "v" && other->value("rank") == "v";
  };
  cluster.kill(0);  // every store begins with the first endpoint
  EXPECT_TRUE(works("without the first"));
  cluster.start(0);
  ASSERT_TRUE(cluster.wait_ready());

  int leader = -1;
  ASSERT_TRUE(eventually([&] { return (leader = cluster.leader()) >= 0; }));
  cluster.kill(leader);
  EXPECT_TRUE(works("without the leader"));
  cluster.start(leader);
  ASSERT_TRUE(cluster.wait_ready());

  for (int i = 0; i < 3; ++i) {  // one of them is in use; as a partition, its connections stand
    cluster.pause(i);
    EXPECT_TRUE(works("while it stands still " + std::to_string(i)));
    cluster.resume(i);
    ASSERT_TRUE(cluster.wait_ready());
  }

  cluster.kill(0);
  cluster.kill(1);  // the third is a minority now, which must not be believed
  ASSERT_TRUE(eventually([&] { return !rig->health().reachable; }));
  EXPECT_EQ(rig->put("in a minority", "v").code(), Code::unavailable);
  EXPECT_EQ(rig->value("rank"), "v");
  cluster.kill(2);
  EXPECT_TRUE(rig->keep_alive(*lease).ok());
  for (int i = 0; i < 3; ++i) cluster.start(i);
  EXPECT_TRUE(works("after a restart of all"));
  EXPECT_TRUE(rig->keep_alive(*lease).ok());
  EXPECT_GE(rig->metric("kvlane_bootstrap_etcd_failovers_total"), 1);
}

TEST_F(Etcd, UserAndPassword) {
  EtcdCluster cluster;
  const auto must = [&](const char* path, const std::string& json) {
    const std::string answer = cluster.call(0, path, json);
    EXPECT_NE(answer.find("header"), std::string::npos) << path << answer;
  };
  must("/v3/auth/user/add", R"({"name":"root","password":"r"})");
  must("/v3/auth/role/add", R"({"name":"root"})");
  must("/v3/auth/user/grant", R"({"user":"root","role":"root"})");
  must("/v3/auth/user/add", R"({"name":"kvlane","password":"secret word"})");
  must("/v3/auth/role/add", R"({"name":"kvlane"})");
  // "/kvlane/" to "/kvlane0"
  must(
      "/v3/auth/role/grant",
      R"({"name":"kvlane","perm":{"permType":"READWRITE","key":"L2t2bGFuZS8=","range_end":"L2t2bGFuZTA="}})");
  must("/v3/auth/user/grant", R"({"user":"kvlane","role":"kvlane"})");
  must("/v3/auth/enable", "{}");

  EtcdStoreOptions options = options_for(cluster, 1);
  options.client.user = "kvlane";
  options.client.password = "secret word";
  const auto rig = rig_with(options);
  ASSERT_TRUE(rig->wait_current());
  const auto lease = rig->grant(60000);
  ASSERT_TRUE(rig->put("k", "v", *lease).ok());
  // A restart forgets the tokens: the next call gets a new one.
  cluster.kill(0);
  cluster.start(0);
  ASSERT_TRUE(
      eventually([&] { return rig->put("after", "v").ok() || rig->value("after") == "v"; }));
  EXPECT_TRUE(eventually([&] { return rig->health().reachable; }));
  EXPECT_TRUE(rig->keep_alive(*lease).ok());

  for (const char* password : {"wrong", ""}) {
    EtcdStoreOptions stranger = options_for(cluster, 2);
    stranger.client.user = *password == '\0' ? "" : "kvlane";
    stranger.client.password = password;
    const auto refused = rig_with(stranger);
    EXPECT_TRUE(
        eventually([&] { return refused->metric("kvlane_bootstrap_etcd_outages_total") == 1; }));
    EXPECT_FALSE(refused->health().loaded);
  }
}

}  // namespace
}  // namespace kvl::bootstrap::test
