// The service over a store that answers later, is overtaken by others, or is away: what etcd does,
// without etcd.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/bootstrap/wire.h"
#include "router/bootstrap/memory_store.h"
#include "router/bootstrap/service.h"
#include "tests/support/log_guard.h"

namespace kvl::bootstrap {
namespace {

// A store in memory whose writes end when the test says so, and as it says.
class LateStore final : public Store {
 public:
  explicit LateStore(const Clock& clock) : inner_(clock, 1, 100) {}

  void grant(std::uint32_t ttl_ms, Granted done) override {
    later([this, ttl_ms, done = std::move(done)] {
      if (!next_.ok()) return done(take());
      inner_.grant(ttl_ms, done);
    });
  }
  void keep_alive(LeaseId lease, Done done) override {
    later([this, lease, done = std::move(done)] { inner_.keep_alive(lease, done); });
  }
  void revoke(LeaseId lease, Done done) override {
    later([this, lease, done = std::move(done)] { inner_.revoke(lease, done); });
  }
  void put(std::string_view key, std::string value, LeaseId lease, std::uint64_t expected,
           Done done) override {
    later([this, key = std::string(key), value = std::move(value), lease, expected,
           done = std::move(done)] {
      if (overtake_) std::exchange(overtake_, nullptr)(inner_, key);
      inner_.put(key, value, lease, expected, done);
    });
  }
  void erase(std::string_view key, Done done) override { inner_.erase(key, std::move(done)); }
  Result<std::optional<StoredValue>> get(std::string_view key) override {
    if (!state.loaded) return Status{Code::unavailable, "nothing is known"};
    return inner_.get(key);
  }
  Result<std::vector<StoredValue>> list(std::string_view prefix) override {
    if (!state.loaded) return Status{Code::unavailable, "nothing is known"};
    return inner_.list(prefix);
  }
  void expire() override {}
  std::size_t size() const override { return inner_.size(); }
  StoreHealth health() const override { return state; }
  void visit_metrics(MetricVisitor&) const override {}

  // Ends what is under way, and what follows from it.
  void finish() {
    while (!waiting_.empty()) {
      for (const auto& work : std::exchange(waiting_, {})) work();
    }
  }
  std::size_t waiting() const { return waiting_.size(); }
  void fail_next(Status status) { next_ = status; }
  void overtake_next(std::function<void(Store&, const std::string&)> by) {
    overtake_ = std::move(by);
  }
  StoreHealth state{.kind = "late", .shared = true};

 private:
  void later(std::function<void()> work) { waiting_.push_back(std::move(work)); }
  Status take() { return std::exchange(next_, {}); }

  MemoryStore inner_;
  std::vector<std::function<void()>> waiting_;
  Status next_;
  std::function<void(Store&, const std::string&)> overtake_;
};

class LateService : public ::testing::Test {
 protected:
  void call(std::string_view method, std::string_view path, std::string_view body = {}) {
    const std::size_t mark = std::min(path.find('?'), path.size());
    service_.handle({.method = method,
                     .path = path.substr(0, mark),
                     .query = path.substr(std::min(path.size(), mark + 1)),
                     .body = body},
                    [this](const ServiceAnswer& answer) { answers_.push_back(answer); });
  }
  static RankRecord record(std::uint64_t epoch) {
    RankRecord out;
    out.instance = "i";
    out.address = "h:1";
    out.epoch = epoch;
    return out;
  }
  void register_rank(std::uint64_t epoch) {
    // The body does not live until the answer.
    const std::string body = encode_register(record(epoch), 5000);
    call("POST", "/kvlane/v1/register", body);
  }

  SteadyClock clock_;
  LateStore store_{clock_};
  BootstrapServerOptions options_;
  Service service_{store_, clock_, options_};
  std::vector<ServiceAnswer> answers_;
};

TEST_F(LateService, AnswersWhenTheStoreHasAnswered) {
  register_rank(5);
  EXPECT_TRUE(answers_.empty());
  EXPECT_EQ(store_.waiting(), 1u);
  call("GET", "/kvlane/v1/ranks?instance=i");
  ASSERT_EQ(answers_.size(), 1u) << "reading waits for nobody";
  store_.finish();
  ASSERT_EQ(answers_.size(), 2u);
  EXPECT_EQ(answers_[1].status, 200);
  call("PUT", "/kvlane/v1/lease/" + std::to_string(decode_lease(answers_[1].body)->id));
  store_.finish();
  EXPECT_EQ(answers_[2].status, 200);
}

TEST_F(LateService, AnOvertakenRegistrationLooksAgain) {
  const auto put = [](std::uint64_t epoch) {
    return [epoch](Store& store, const std::string& key) {
      store.put(key, encode_record(record(epoch)), kNoLease, 0,
                [](const Status& status) { EXPECT_TRUE(status.ok()); });
    };
  };
  store_.overtake_next(put(4));
  register_rank(5);
  store_.finish();
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].status, 200) << "the other one was older: replaced";
  call("GET", "/kvlane/v1/ranks?instance=i");
  EXPECT_EQ(decode_ranks(answers_[1].body)->at(0).epoch, 5u);
}

TEST_F(LateService, ANewerEpochThatOvertakesWins) {
  const test::ExpectLog expected("bootstrap.refused");
  store_.overtake_next([](Store& store, const std::string& key) {
    store.put(key, encode_record(record(6)), kNoLease, 0, [](const Status&) {});
  });
  register_rank(5);
  store_.finish();
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].status, 409);
  EXPECT_EQ(decode_error(answers_[0].body), kRefusedEpoch);
}

TEST_F(LateService, AStoreThatIsAwayIs503AndSaidEverywhere) {
  register_rank(5);
  store_.finish();
  store_.state.reachable = false;
  store_.state.stale_ms = 1234;
  store_.fail_next({Code::unavailable, "etcd does not answer"});
  register_rank(6);
  store_.finish();
  EXPECT_EQ(answers_[1].status, 503);
  EXPECT_EQ(decode_error(answers_[1].body), "store");
  EXPECT_NE(answers_[1].body.find("etcd does not answer"), std::string::npos);
  call("GET", "/kvlane/v1/ranks?instance=i");
  EXPECT_NE(answers_[2].body.find("\"stale_ms\":1234"), std::string::npos);
  EXPECT_EQ(decode_ranks(answers_[2].body)->size(), 1u) << "and clients read it";
  call("GET", "/health");
  EXPECT_EQ(answers_[3].status, 200);
  EXPECT_EQ(answers_[3].body,
            R"({"status":"stale","store":"late","reachable":false,"stale_ms":1234,"records":1})");
  store_.state.loaded = false;
  call("GET", "/kvlane/v1/ranks?instance=i");
  EXPECT_EQ(answers_[4].status, 503) << "nothing is known: not the same as an empty list";
  call("GET", "/health");
  EXPECT_EQ(answers_[5].status, 503);
}

TEST_F(LateService, ARoomIsKnownHereWhateverTheStoreSays) {
  store_.fail_next({Code::unavailable, "away"});
  call("POST", "/register_dp_rank", R"({"bootstrap_room":1,"dp_rank":2})");
  store_.finish();
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].status, 200);
  call("POST", "/query_dp_ranks", R"({"bootstrap_rooms":[1]})");
  EXPECT_EQ(answers_[1].body, R"({"1":2})");
}

}  // namespace
}  // namespace kvl::bootstrap
