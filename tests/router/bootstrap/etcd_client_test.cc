// The pieces under the store in etcd, against servers that are none: failover, tokens, deadlines,
// garbage; and etcd's JSON with damage.
#include "router/bootstrap/etcd_client.h"

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/post.hpp>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "router/bootstrap/etcd_cache.h"
#include "router/bootstrap/etcd_wire.h"
#include "tests/router/support/stub_worker.h"
#include "tests/support/log_guard.h"

namespace kvl::bootstrap::etcd {
namespace {

using kvl::test::StubPeer;
using kvl::test::StubRequest;
using kvl::test::StubWorker;

class ClientRig {
 public:
  explicit ClientRig(ClientOptions options)
      : client_(std::make_unique<Client>(loop_, std::move(options))),
        thread_([this] { loop_.run(); }) {}
  ~ClientRig() {
    boost::asio::post(loop_.io(), [this] {
      client_->stop();
      loop_.stop();
    });
    thread_.join();
  }
  ClientRig(const ClientRig&) = delete;
  ClientRig& operator=(const ClientRig&) = delete;

  std::pair<Status, std::string> call(std::string body = "{}") {
    auto answer = std::make_shared<std::promise<std::pair<Status, std::string>>>();
    auto future = answer->get_future();
    boost::asio::post(loop_.io(), [this, answer, body = std::move(body)] {
      client_->call("/v3/kv/range", body, [answer](const Status& status, std::string_view text) {
        answer->set_value({status, std::string(text)});
      });
    });
    if (future.wait_for(kvl::test::kPatience) != std::future_status::ready) {
      ADD_FAILURE() << "never called back";
      return {{Code::internal, "never called back"}, {}};
    }
    return future.get();
  }
  const ClientCounters& counters() const { return client_->counters(); }

 private:
  http::Loop loop_{0};
  std::unique_ptr<Client> client_;
  std::thread thread_;
};

ClientOptions options_for(std::initializer_list<const StubWorker*> members) {
  ClientOptions options;
  for (const StubWorker* member : members) {
    options.endpoints.push_back(*http::parse_url(member->url()));
  }
  options.timeout_ms = 5000;
  return options;
}

StubWorker::Script answer(int status, std::string body) {
  return [status, body](StubPeer& peer, const StubRequest&) { peer.answer(status, body); };
}

TEST(EtcdClient, AMemberThatIsGoneOrHasNoLeaderIsLeft) {
  StubWorker gone;
  StubWorker headless(answer(503, R"({"error":"etcdserver: no leader","code":14,)"
                                  R"("message":"etcdserver: no leader"})"));
  StubWorker good(answer(200, "good"));
  ClientRig rig(options_for({&gone, &headless, &good}));
  gone.stop();
  EXPECT_EQ(rig.call().second, "good");
  EXPECT_EQ(rig.counters().failovers_total.value(), 2u);
  EXPECT_EQ(rig.call().second, "good");
  EXPECT_EQ(headless.requests().size(), 1u) << "the good one is kept";
}

TEST(EtcdClient, AMemberThatIsSilentIsLeftWithinItsShareOfTheTime) {
  StubWorker silent([](StubPeer& peer, const StubRequest&) {
    peer.wait_closed();
    peer.close();
  });
  StubWorker good(answer(200, "good"));
  ClientOptions options = options_for({&silent, &good});
  options.timeout_ms = 600;
  EXPECT_EQ(ClientRig(options).call().second, "good");
}

TEST(EtcdClient, NobodyAnsweringIsUnavailableInTime) {
  StubWorker a, b;
  ClientOptions options = options_for({&a, &b});
  options.timeout_ms = 300;
  a.stop();
  b.stop();
  ClientRig rig(options);
  EXPECT_EQ(rig.call().first.code(), Code::unavailable);
  EXPECT_EQ(rig.counters().failed_calls[static_cast<std::size_t>(Code::unavailable)].value(), 1u);
}

TEST(EtcdClient, WhatEtcdRefusesIsNotTriedElsewhere) {
  const std::pair<int, Code> cases[] = {{5, Code::not_found},        {9, Code::aborted},
                                        {8, Code::exhausted},        {7, Code::permission},
                                        {3, Code::invalid_argument}, {11, Code::aborted}};
  for (const auto& [grpc, code] : cases) {
    StubWorker member(answer(400, "{\"code\":" + std::to_string(grpc) + ",\"message\":\"m\"}"));
    ClientRig rig(options_for({&member}));
    EXPECT_EQ(rig.call().first.code(), code) << grpc;
    EXPECT_EQ(member.requests().size(), 1u);
  }
}

TEST(EtcdClient, ATokenIsFetchedOnceAndAgainWhenItIsNotTakenAnyMore) {
  std::atomic<int> tokens{0}, valid{1};
  StubWorker member([&](StubPeer& peer, const StubRequest& request) {
    if (request.path == "/v3/auth/authenticate") {
      EXPECT_EQ(request.body, R"({"name":"u","password":"p\"w"})");
      return peer.answer(200, "{\"token\":\"t" + std::to_string(++tokens) + "\"}");
    }
    const std::string good = "Authorization: t" + std::to_string(valid) + "\r\n";
    if (request.head.find(good) != std::string::npos) return peer.answer(200, "in");
    peer.answer(401, R"({"code":16,"message":"etcdserver: invalid auth token"})");
  });
  ClientOptions options = options_for({&member});
  options.user = "u";
  options.password = "p\"w";
  ClientRig rig(options);
  EXPECT_EQ(rig.call().second, "in");
  EXPECT_EQ(rig.call().second, "in");
  EXPECT_EQ(tokens, 1);
  valid = 2;
  EXPECT_EQ(rig.call().second, "in");
  EXPECT_EQ(tokens, 2);
  valid = 100;
  EXPECT_EQ(rig.call().first.code(), Code::permission) << "a new token does not help for ever";
}

TEST(EtcdClient, GarbageIsNeverAnAnswer) {
  for (const char* bytes : {"\x01\x02\x03 not http\r\n\r\n", "HTTP/1.1 200 OK\r\n", ""}) {
    StubWorker member([bytes](StubPeer& peer, const StubRequest&) {
      peer.send(bytes);
      peer.close();
    });
    ClientOptions options = options_for({&member});
    options.timeout_ms = 200;
    EXPECT_EQ(ClientRig(options).call().first.code(), Code::unavailable);
  }
}

TEST(EtcdWire, RangesEndBehindTheirPrefix) {
  EXPECT_EQ(range_end("/kvlane/"), "/kvlane0");
  EXPECT_EQ(range_end(std::string("a\xff\xff")), "b");
  EXPECT_EQ(range_end(std::string("\xff")), std::string(1, '\0'));
}

TEST(EtcdWire, DamagedAnswersNeverBreakIt) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::string origins[] = {
      R"({"header":{"cluster_id":"3","revision":"2"},"kvs":[{"key":"YQ==","mod_revision":"2",)"
      R"("value":"dg==","lease":"12345"}],"more":true,"count":"1"})",
      R"({"header":{"revision":"2"},"succeeded":true,"responses":[{"response_range":)"
      R"({"kvs":[{"key":"YQ==","mod_revision":"2","value":"dg=="}]}}]})",
      R"({"result":{"header":{"revision":"5"},"created":true,"events":[{"type":"DELETE",)"
      R"("kv":{"key":"YQ==","mod_revision":"5"}}],"ID":"1","TTL":"5"},"token":"x"})"};
  EXPECT_TRUE(decode_range(origins[0]).ok());
  EXPECT_EQ(decode_range(origins[0])->values[0].lease, 12345u);
  EXPECT_TRUE(decode_put_if(origins[1])->put);
  EXPECT_TRUE(decode_watch(origins[2])->events[0].deleted);
  EXPECT_EQ(*decode_keep_alive(origins[2]), 5u);
  for (int round = 0; round < 6000; ++round) {
    std::string body = origins[random() % 3];
    for (std::uint64_t edits = 1 + random() % 4; edits > 0 && !body.empty(); --edits) {
      const std::size_t at = random() % body.size();
      switch (random() % 3) {
        case 0:
          body[at] = static_cast<char>(random());
          break;
        case 1:
          body.erase(at, 1 + random() % 8);
          break;
        default:
          body.insert(at, body.substr(random() % body.size(), random() % 16));
          break;
      }
    }
    (void)decode_range(body).ok();
    (void)decode_put_if(body).ok();
    (void)decode_watch(body).ok();
    (void)decode_keep_alive(body).ok();
    (void)decode_token(body).ok();
    (void)decode_header(body).ok();
    (void)decode_failure(body);
  }
}

TEST(EtcdCache, OldNewsIsNotTaken) {
  Cache cache;
  cache.put("k", {"1", 5, 7});
  cache.put("k", {"0", 4, 8});
  EXPECT_EQ(cache.find("k")->value, "1");
  cache.erase("k", 4);
  EXPECT_NE(cache.find("k"), nullptr);
  cache.erase("k", 6);
  EXPECT_EQ(cache.find("k"), nullptr);
  cache.put("k", {"1", 5, 7});
  EXPECT_EQ(cache.find("k"), nullptr) << "it was deleted after that";
  cache.set_seen(6);
  cache.put("k", {"2", 8, 7});
  ASSERT_NE(cache.keys_of(7), nullptr);
  // A list that was made before a change of ours does not undo it.
  cache.erase("gone", 9);
  cache.replace({{"gone", {"x", 3, 0}}, {"k", {"1", 5, 7}}, {"new", {"n", 6, 0}}}, 7);
  EXPECT_EQ(cache.find("k")->value, "2");
  EXPECT_EQ(cache.find("gone"), nullptr);
  EXPECT_EQ(cache.find("new")->value, "n");
  EXPECT_EQ(cache.seen(), 7u);
}

}  // namespace
}  // namespace kvl::bootstrap::etcd
