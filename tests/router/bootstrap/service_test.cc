// The rendezvous without sockets and with a clock of the test's own: leases, epochs, versions, and
// SGLang's protocol.
#include "router/bootstrap/service.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>
#include <string>

#include "kvcache/bootstrap/wire.h"
#include "router/bootstrap/memory_store.h"
#include "tests/support/log_guard.h"

namespace kvl::bootstrap {
namespace {

namespace json = boost::json;

class TestClock final : public Clock {
 public:
  std::int64_t now_ns() const override { return now; }
  void pass_ms(std::int64_t ms) { now += ms * 1'000'000; }
  std::int64_t now = 1;
};

class ServiceTest : public ::testing::Test {
 protected:
  ServiceAnswer call(std::string_view method, std::string_view target, std::string_view body = {}) {
    const std::size_t mark = std::min(target.find('?'), target.size());
    ServiceAnswer got{.status = 0};
    service_.handle({.method = method,
                     .path = target.substr(0, mark),
                     .query = target.substr(std::min(target.size(), mark + 1)),
                     .body = body},
                    [&got](ServiceAnswer answer) { got = std::move(answer); });
    return got;
  }
  ServiceAnswer register_rank(const RankRecord& record, std::uint32_t lease_ms = 5000) {
    return call("POST", "/kvlane/v1/register", encode_register(record, lease_ms));
  }
  std::uint64_t lease_of(const ServiceAnswer& answer) { return decode_lease(answer.body)->id; }
  std::size_t rank_count(const std::string& instance) {
    return decode_ranks(call("GET", "/kvlane/v1/ranks?instance=" + instance).body)->size();
  }
  static RankRecord record(std::uint32_t tp_rank = 0) {
    RankRecord out;
    out.instance = "10.0.0.1:8998";
    out.role = EngineRole::prefill;
    out.tp_rank = tp_rank;
    out.tp_size = 4;
    out.address = "10.0.0.1:" + std::to_string(5000 + tp_rank);
    out.epoch = 100;
    out.layout = {std::byte{0}, std::byte{255}, std::byte{7}};
    return out;
  }

  TestClock clock_;
  BootstrapServerOptions options_{.records_max = 100};
  MemoryStore store_{clock_, 1, options_.records_max};
  Service service_{store_, clock_, options_};
};

TEST_F(ServiceTest, ARankIsFoundAsItWasRegistered) {
  ASSERT_EQ(register_rank(record(1)).status, 200);
  const auto found = decode_ranks(call("GET", "/kvlane/v1/ranks?instance=10.0.0.1:8998").body);
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->size(), 1u);
  const RankRecord& rank = found->front();
  EXPECT_EQ(encode_record(rank), encode_record(record(1)));
  EXPECT_EQ(rank.layout, record().layout);
  EXPECT_EQ(rank.role, EngineRole::prefill);
}

TEST_F(ServiceTest, NamesWithSeparatorsDoNotMix) {
  RankRecord a = record();
  a.cluster = "x/y";
  a.instance = "z";
  RankRecord b = record();
  b.cluster = "x";
  b.instance = "y/z%2F";
  ASSERT_EQ(register_rank(a).status, 200);
  ASSERT_EQ(register_rank(b).status, 200);
  const auto ranks = [&](const char* query) {
    return decode_ranks(call("GET", std::string("/kvlane/v1/ranks?") + query).body)->size();
  };
  EXPECT_EQ(ranks("cluster=x%2Fy&instance=z"), 1u);
  EXPECT_EQ(ranks("cluster=x&instance=y%2Fz%252F"), 1u);
  EXPECT_EQ(ranks("cluster=x&instance=y"), 0u);
  EXPECT_EQ(call("GET", "/kvlane/v1/instances?cluster=x").body, R"({"instances":["y/z%2F"]})");
}

TEST_F(ServiceTest, LeasesEndUnlessRenewed) {
  const std::uint64_t kept = lease_of(register_rank(record(0)));
  const std::uint64_t left = lease_of(register_rank(record(1)));
  clock_.pass_ms(4000);
  EXPECT_EQ(call("PUT", "/kvlane/v1/lease/" + std::to_string(kept)).status, 200);
  clock_.pass_ms(1001);
  EXPECT_EQ(rank_count("10.0.0.1:8998"), 1u);
  EXPECT_EQ(call("PUT", "/kvlane/v1/lease/" + std::to_string(left)).status, 404);
  EXPECT_EQ(call("DELETE", "/kvlane/v1/lease/" + std::to_string(kept)).status, 200);
  EXPECT_EQ(rank_count("10.0.0.1:8998"), 0u);
  EXPECT_EQ(call("DELETE", "/kvlane/v1/lease/" + std::to_string(kept)).status, 404);
  EXPECT_EQ(call("PATCH", "/kvlane/v1/lease/1").status, 405);
  EXPECT_EQ(call("PUT", "/kvlane/v1/lease/1x").status, 400);
}

TEST_F(ServiceTest, LeaseTimesAreKeptWithinBounds) {
  EXPECT_EQ(decode_lease(register_rank(record(0), 1).body)->lease_ms, options_.lease_min_ms);
  EXPECT_EQ(decode_lease(register_rank(record(0), 2'000'000'000).body)->lease_ms,
            options_.lease_max_ms);
}

TEST_F(ServiceTest, AnOlderEpochIsRefusedAndANewerReplaces) {
  const test::ExpectLog expected("bootstrap.refused");
  const std::uint64_t old_lease = lease_of(register_rank(record()));
  RankRecord zombie = record();
  zombie.epoch = 99;
  const ServiceAnswer refused = register_rank(zombie);
  EXPECT_EQ(refused.status, 409);
  EXPECT_EQ(decode_error(refused.body), kRefusedEpoch);
  RankRecord reborn = record();
  reborn.epoch = 101;
  reborn.address = "10.0.0.1:6000";
  EXPECT_EQ(register_rank(reborn).status, 200);
  EXPECT_EQ(rank_count("10.0.0.1:8998"), 1u);
  // The predecessor's lease ends without taking the successor's record with it.
  call("DELETE", "/kvlane/v1/lease/" + std::to_string(old_lease));
  EXPECT_EQ(rank_count("10.0.0.1:8998"), 1u);
  EXPECT_EQ(service_.counters().refused.counts[static_cast<std::size_t>(Refusal::conflict)].value(),
            1u);
}

TEST_F(ServiceTest, AnotherVersionIsToldWhichOneIsSpoken) {
  const test::ExpectLog expected("bootstrap.refused");
  std::string body = encode_register(record(), 5000);
  body.replace(body.find("\"version\":1"), 11, "\"version\":2");
  const ServiceAnswer refused = call("POST", "/kvlane/v1/register", body);
  EXPECT_EQ(refused.status, 409);
  EXPECT_EQ(decode_error(refused.body), kRefusedVersion);
  EXPECT_NE(refused.body.find("version 1"), std::string::npos);
}

TEST_F(ServiceTest, WrongFieldsAreNamed) {
  for (const char* field :
       {"cluster", "instance", "role", "tp_rank", "tp_size", "pp_rank", "pp_size", "dp_rank",
        "dp_size", "address", "epoch", "layout", "lease_ms"}) {
    json::object object = json::parse(encode_register(record(), 5000)).get_object();
    object[field] = json::array{};
    const ServiceAnswer answer = call("POST", "/kvlane/v1/register", json::serialize(object));
    EXPECT_EQ(answer.status, 400);
    EXPECT_NE(answer.body.find(field), std::string::npos) << answer.body;
    object.erase(field);
    EXPECT_EQ(call("POST", "/kvlane/v1/register", json::serialize(object)).status, 400) << field;
  }
  RankRecord wrong = record();
  wrong.tp_rank = 4;
  EXPECT_EQ(register_rank(wrong).status, 400);
  EXPECT_EQ(call("GET", "/kvlane/v1/ranks").status, 400);
  EXPECT_EQ(call("GET", "/nothing").status, 404);
}

TEST_F(ServiceTest, FullIsSaidAndChangesNothing) {
  const test::ExpectLog expected("bootstrap.refused");
  for (std::uint32_t i = 0; i < 100; ++i) {
    RankRecord rank = record();
    rank.instance = "i" + std::to_string(i);
    ASSERT_EQ(register_rank(rank).status, 200) << i;
  }
  const ServiceAnswer full = register_rank(record());
  EXPECT_EQ(full.status, 503);
  EXPECT_EQ(decode_error(full.body), kRefusedFull);
  clock_.pass_ms(5001);
  EXPECT_EQ(register_rank(record()).status, 200);
  EXPECT_EQ(store_.size(), 1u);
}

TEST_F(ServiceTest, MutatedRegistrationsNeverBreakIt) {
  const test::ExpectLog expected("bootstrap.refused");
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::string origin = encode_register(record(), 5000);
  for (int round = 0; round < 5000; ++round) {
    std::string body = origin;
    for (std::uint64_t edits = 1 + random() % 4; edits > 0; --edits) {
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
      if (body.empty()) break;
    }
    const int status = call("POST", "/kvlane/v1/register", body).status;
    ASSERT_TRUE(status == 200 || status == 400 || status == 409 || status == 503) << body;
    if (round % 50 == 0) clock_.pass_ms(10000);
  }
}

// SGLang's protocol, with the fields that its prefill ranks send.
class Sglang : public ServiceTest {
 protected:
  static std::string rank_body(int tp_rank, int pp_rank = 0, int tp_size = 2,
                               const std::string& more = "") {
    return "{\"attn_tp_size\":" + std::to_string(tp_size) +
           ",\"attn_tp_rank\":" + std::to_string(tp_rank) +
           ",\"attn_cp_size\":1,\"attn_cp_rank\":0,\"attn_dp_size\":1,\"attn_dp_rank\":0,"
           "\"pp_size\":2,\"pp_rank\":" +
           std::to_string(pp_rank) +
           ",\"system_dp_size\":1,\"system_dp_rank\":0,\"rank_ip\":\"10.0.0.1\",\"rank_port\":" +
           std::to_string(7000 + 10 * pp_rank + tp_rank) +
           ",\"page_size\":64,\"kv_cache_dtype\":\"auto\",\"load_balance_method\":"
           "\"follow_bootstrap_room\",\"enable_dsa_cache_layer_split\":false,"
           "\"enable_kv_cache_sharding\":false,\"prefill_http_port\":30000,"
           "\"decode_allocation_policy\":null" +
           more + "}";
  }
  static std::string route(int dp, int cp, int tp, int pp) {
    return "/route?prefill_dp_rank=" + std::to_string(dp) +
           "&prefill_cp_rank=" + std::to_string(cp) + "&target_tp_rank=" + std::to_string(tp) +
           "&target_pp_rank=" + std::to_string(pp);
  }
  void put_all(int tp_size = 2) {
    for (int tp = 0; tp < tp_size; ++tp) {
      for (int pp = 0; pp < 2; ++pp) {
        ASSERT_EQ(call("PUT", "/route", rank_body(tp, pp, tp_size)).status, 200);
      }
    }
  }
};

TEST_F(Sglang, ShapeAndAddressesAreAnsweredOnceAllRanksAreThere) {
  EXPECT_EQ(call("GET", "/health").body, "OK");
  EXPECT_EQ(call("GET", route(-1, -1, -1, -1)).status, 503);
  EXPECT_EQ(call("PUT", "/route", rank_body(0, 0)).body, "OK");
  EXPECT_EQ(call("GET", route(0, 0, 0, 0)).status, 503);
  put_all();
  const ServiceAnswer shape = call("GET", route(-1, -1, -1, -1));
  ASSERT_EQ(shape.status, 200);
  EXPECT_EQ(json::parse(shape.body),
            json::parse(R"({"attn_tp_size":2,"attn_cp_size":1,"dp_size":1,"pp_size":2,
                "page_size":64,"kv_cache_dtype":"auto","follow_bootstrap_room":true,
                "enable_dsa_cache_layer_split":false,"enable_kv_cache_sharding":false,
                "prefill_http_port":30000,"decode_allocation_policy":null})"));
  const ServiceAnswer rank = call("GET", route(0, 0, 1, 1));
  EXPECT_EQ(json::parse(rank.body), json::parse(R"({"rank_ip":"10.0.0.1","rank_port":7011})"));
  EXPECT_EQ(call("GET", route(0, 0, 2, 0)).status, 404);
  EXPECT_EQ(call("GET", route(0, 0, 99999, 0)).status, 404);
  EXPECT_EQ(call("GET", route(-1, 0, 0, 0)).status, 404);
  EXPECT_EQ(call("GET", "/route?prefill_dp_rank=-1").status, 400);
  EXPECT_EQ(call("GET", "/route").status, 400);
}

TEST_F(Sglang, ARankThatRegistersTwiceIsCountedOnce) {
  for (int i = 0; i < 8; ++i) call("PUT", "/route", rank_body(0, 0));
  EXPECT_EQ(call("GET", route(-1, -1, -1, -1)).status, 503);
  put_all();
  std::string moved = rank_body(1, 1);
  moved.replace(moved.find("7011"), 4, "7999");
  EXPECT_EQ(call("PUT", "/route", moved).status, 200);
  EXPECT_NE(call("GET", route(0, 0, 1, 1)).body.find("7999"), std::string::npos);
}

TEST_F(Sglang, ARankThatDoesNotFitIsRefusedButARestartedInstanceIsNot) {
  put_all();
  EXPECT_EQ(call("PUT", "/route", rank_body(3, 0, 4)).status, 400);
  EXPECT_EQ(call("GET", route(-1, -1, -1, -1)).status, 200);
  const test::ExpectLog expected("bootstrap.instance_changed");
  EXPECT_EQ(call("PUT", "/route", rank_body(0, 0, 4)).status, 200);
  EXPECT_EQ(call("GET", route(-1, -1, -1, -1)).status, 503) << "the old ranks are gone";
  put_all(4);
  EXPECT_EQ(call("GET", route(0, 0, 3, 1)).status, 200);
}

TEST_F(Sglang, OptionalFieldsAndDataParallelism) {
  for (int dp = 0; dp < 2; ++dp) {
    const std::string body = R"({"attn_tp_size":1,"attn_tp_rank":0,"system_dp_size":2,
        "system_dp_rank":)" + std::to_string(dp) +
                             R"(,"rank_ip":"h","rank_port":1,"kv_layout":"hnd",
        "load_balance_method":"round_robin"})";
    ASSERT_EQ(call("PUT", "/route", body).status, 200);
  }
  const json::value shape = json::parse(call("GET", route(-1, -1, -1, -1)).body);
  EXPECT_EQ(shape.at("dp_size").as_int64(), 2);
  EXPECT_EQ(shape.at("kv_layout").as_string(), "hnd");
  EXPECT_EQ(shape.at("follow_bootstrap_room").as_bool(), false);
  EXPECT_EQ(call("GET", route(1, 0, 0, 0)).status, 200);
}

TEST_F(Sglang, WrongRegistrationsAreRefused) {
  for (const char* body : {"", "[]", "{}", "{\"attn_tp_size\":0,\"attn_tp_rank\":0}",
                           R"({"attn_tp_size":1,"attn_tp_rank":1,"rank_ip":"h","rank_port":1})",
                           R"({"attn_tp_size":1,"attn_tp_rank":0,"rank_ip":5,"rank_port":1})",
                           R"({"attn_tp_size":1,"attn_tp_rank":0,"rank_ip":"h","rank_port":70000})",
                           R"({"attn_tp_size":99999,"attn_tp_rank":0,"rank_ip":"h","rank_port":1})",
                           R"({"attn_tp_size":-1,"attn_tp_rank":0,"rank_ip":"h","rank_port":1})"}) {
    EXPECT_EQ(call("PUT", "/route", body).status, 400) << body;
  }
}

TEST_F(Sglang, RoomsRememberTheirRankForATime) {
  const auto put = [&](const char* body) { return call("POST", "/register_dp_rank", body).status; };
  EXPECT_EQ(put(R"({"bootstrap_room":9223372036854775807,"dp_rank":3})"), 200);
  clock_.pass_ms(60000);
  EXPECT_EQ(put(R"({"bootstrap_room":5,"dp_rank":1})"), 200);
  const char* const query = R"({"bootstrap_rooms":[5,9223372036854775807,6]})";
  EXPECT_EQ(json::parse(call("POST", "/query_dp_ranks", query).body),
            json::parse(R"({"5":1,"9223372036854775807":3})"));
  clock_.pass_ms(60001);
  EXPECT_EQ(call("POST", "/query_dp_ranks", query).body, R"({"5":1})");
  for (const char* body : {"", "{}", R"({"bootstrap_room":-1,"dp_rank":0})",
                           R"({"bootstrap_room":1,"dp_rank":"x"})"}) {
    EXPECT_EQ(put(body), 400) << body;
  }
  EXPECT_EQ(call("POST", "/query_dp_ranks", R"({"bootstrap_rooms":5})").status, 400);
  EXPECT_EQ(call("POST", "/query_dp_ranks", R"({"bootstrap_rooms":["5"]})").status, 400);
}

TEST_F(Sglang, RoomsAreBounded) {
  for (int i = 0; i < 100; ++i) {
    call("POST", "/register_dp_rank",
         "{\"bootstrap_room\":" + std::to_string(i) + ",\"dp_rank\":0}");
  }
  EXPECT_EQ(call("POST", "/register_dp_rank", R"({"bootstrap_room":100,"dp_rank":0})").status, 503);
}

}  // namespace
}  // namespace kvl::bootstrap
