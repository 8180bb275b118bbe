// What makes no sense, comes too early, or is hostile: a typed answer, and nothing else is harmed.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "kvcache/handoff/wire.h"
#include "tests/kvcache/handoff/cluster.h"
#include "tests/support/log_guard.h"

namespace kvl::test {
namespace {

TEST(HandoffRefusals, OfCallsThatMakeNoSense) {
  Cluster cluster;
  const Request request = cluster.make_request(1, 16);
  HandoffEndpoint& prefill = *cluster.prefill().endpoint;
  HandoffEndpoint& decode = *cluster.decode().endpoint;
  const auto refused = [](const Status& status) { return status.code() == Code::invalid_argument; };

  EXPECT_TRUE(refused(prefill.open_prefill({1, 0, 0})));
  EXPECT_TRUE(refused(decode.open_prefill({1, 16, 0})));
  ASSERT_TRUE(prefill.open_prefill({1, 16, 0}).ok());
  EXPECT_TRUE(refused(prefill.open_prefill({1, 16, 0})));  // duplicate
  const std::uint32_t outside[] = {96};
  EXPECT_TRUE(refused(prefill.add_pages(1, 0, outside)));
  EXPECT_TRUE(refused(prefill.add_pages(1, 1, {})));
  EXPECT_TRUE(refused(prefill.ready(1, {0, 4}, 17)));
  EXPECT_TRUE(refused(prefill.abort(HandoffSide::prefill, 1, Code::ok)));
  EXPECT_EQ(prefill.ready(2, {0, 4}, 1).code(), Code::not_found);
  EXPECT_EQ(prefill.abort(HandoffSide::prefill, 2).code(), Code::not_found);

  const DecodeOpen good = cluster.decode_open(request, 0);
  const auto with = [&](auto change) {
    DecodeOpen open = good;
    change(open);
    return decode.open_decode(std::move(open));
  };
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.sources.clear(); })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.sources.push_back(o.sources[0]); })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.pages.clear(); })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.pages[0].ids.pop_back(); })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.pages[0].ids[1] = 96; })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.pages[0].first_token = 4; })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.skip_tokens = 16; })));
  EXPECT_TRUE(refused(with([](DecodeOpen& o) { o.group_size = 0; })));
  ASSERT_TRUE(with([](DecodeOpen&) {}).ok());
  EXPECT_TRUE(refused(with([](DecodeOpen&) {})));  // duplicate
  std::vector<std::byte> long_metadata(kHandoffMetadataBytesMax + 1);
  ASSERT_TRUE(prefill.add_pages(1, 0, request.prefill_pages[0]).ok());
  ASSERT_TRUE(prefill.ready(1, {0, 4}, 16).ok());
  EXPECT_TRUE(refused(prefill.finish(1, long_metadata)));
  long_metadata.pop_back();
  ASSERT_TRUE(prefill.finish(1, long_metadata).ok());
  EXPECT_TRUE(refused(prefill.finish(1, {})));
  cluster.run();
  cluster.expect_committed(request);
  EXPECT_EQ(cluster.seen_decode(1).metadata.at(0), long_metadata);
}

TEST(HandoffRefusals, DisagreementFailsThatRequestOnBothSidesAndNoOther) {
  Cluster cluster;
  const Request good = cluster.make_request(1, 16), tokens = cluster.make_request(2, 16),
                twice = cluster.make_request(3, 16);
  cluster.open_everywhere(good);
  ASSERT_TRUE(cluster.prefill().endpoint->open_prefill({2, 15, 0}).ok());
  ASSERT_TRUE(cluster.open_decode(tokens).ok());
  ASSERT_TRUE(cluster.open_prefill(twice).ok());
  DecodeOpen same_page = cluster.decode_open(twice, 0);
  same_page.pages[0].ids[1] = same_page.pages[0].ids[0];
  ASSERT_TRUE(cluster.decode().endpoint->open_decode(same_page).ok());
  cluster.run();
  cluster.expect_failed(tokens, Code::invalid_argument);
  ASSERT_TRUE(cluster.ready(twice, 0, {0, 4}, 16).ok());
  cluster.run();
  cluster.expect_failed(twice, Code::invalid_argument);
  cluster.finish_everywhere(good);
  cluster.run();
  cluster.expect_committed(good);
  cluster.expect_nothing_open();
}

TEST(HandoffRefusals, SourcesThatDoNotCoverTheLayout) {
  ClusterOptions options;
  options.prefill = {2, 1};
  Cluster cluster(options);
  const Request request = cluster.make_request(1, 16);
  DecodeOpen open = cluster.decode_open(request, 0);
  open.sources.pop_back();
  ASSERT_TRUE(cluster.decode().endpoint->open_decode(open).ok());
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(1).code, Code::invalid_argument);
  EXPECT_TRUE(cluster.seen_decode(1).safe);
}

TEST(HandoffEarly, KeptWithinBoundsInCountAndTime) {
  const ExpectLog log("handoff.early_dropped");
  ClusterOptions options;
  options.config.early_max = 3;
  options.config.early_ms = 100;
  Cluster cluster(options);
  std::vector<Request> requests;
  for (std::uint64_t room = 1; room <= 5; ++room) {
    requests.push_back(cluster.make_request(room, 8));
    ASSERT_TRUE(cluster.open_decode(requests.back()).ok());
  }
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(4).code, Code::exhausted);
  EXPECT_EQ(cluster.seen_decode(5).code, Code::exhausted);
  EXPECT_TRUE(cluster.seen_decode(5).safe);
  cluster.advance_ms(101);
  for (std::uint64_t room = 1; room <= 3; ++room) {
    EXPECT_EQ(cluster.seen_decode(room).code, Code::not_found);
    EXPECT_TRUE(cluster.seen_decode(room).safe);
  }
  cluster.expect_nothing_open();
}

TEST(HandoffEarly, AClientThatLeftBeforePrefillCame) {
  Cluster cluster;
  const Request request = cluster.make_request(1, 8);
  ASSERT_TRUE(cluster.open_decode(request).ok());
  cluster.run();
  ASSERT_TRUE(cluster.decode().endpoint->abort(HandoffSide::decode, 1).ok());
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(1).released, 1);
  ASSERT_TRUE(cluster.prefill().endpoint->open_prefill({1, 8, 0}).ok());
  cluster.run();
  EXPECT_EQ(cluster.seen_prefill(1).code, Code::aborted);
  cluster.expect_nothing_open();
}

// Peers of different versions refuse each other once, and do not argue.
TEST(HandoffHostile, AnotherVersionIsRefusedQuietly) {
  const ExpectLog log("handoff.peer_refused");
  ClusterOptions options;
  options.greet = false;
  Cluster cluster(options);
  cluster.world.on_message = [](std::size_t, std::size_t, std::vector<std::byte>& m) {
    m[4] = std::byte{1};
    return true;
  };
  const Request request = cluster.make_request(1, 8);
  ASSERT_TRUE(cluster.open_decode(request).ok());
  cluster.greet_all();
  for (const Cluster::Node* node : {&cluster.prefill(), &cluster.decode()}) {
    ASSERT_EQ(node->peers.size(), 1U);
    EXPECT_EQ(node->peers[0].kind, HandoffEvent::Kind::peer_refused);
    EXPECT_EQ(node->peers[0].code, Code::unsupported);
  }
  EXPECT_EQ(cluster.seen_decode(1).code, Code::unsupported);
  EXPECT_TRUE(cluster.seen_decode(1).safe);
}

// Devices that read and do not write, as those of EFA's first generation, are for pulling.
TEST(HandoffBest, PushesWhereItCanAndPullsWhereItMust) {
  for (const bool writes : {true, false}) {
    Cluster cluster;
    const Request request = cluster.make_request(1, 16, 0, HandoffMode::best);
    if (!writes) {
      for (std::size_t i = 0; i < cluster.world.size(); ++i) {
        cluster.world.engine(i).caps = static_cast<std::uint32_t>(Cap::read);
      }
    }
    cluster.open_everywhere(request);
    cluster.run();
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
      ASSERT_TRUE(cluster.ready(request, 0, {layer, 1}, 16).ok());
      cluster.run();
    }
    cluster.finish_everywhere(request);
    cluster.run();
    cluster.expect_committed(request);
    EXPECT_EQ(cluster.world.engine(0).submitted > 0, writes);
    EXPECT_EQ(cluster.world.engine(1).submitted > 0, !writes);
  }
}

// Segments are counted on both sides: a gap, or a finish that counts others than came, is no end.
class HandoffCounts : public ::testing::TestWithParam<HandoffMode> {
 protected:
  // Prefill moves all layers one by one and finishes; `change` sees each of its messages.
  void move(const std::function<void(handoff::Message&)>& change) {
    cluster_.world.on_message = [&change](std::size_t from, std::size_t,
                                          std::vector<std::byte>& m) {
      handoff::Message message = handoff::decode(m).value();
      if (from != 0) return true;
      change(message);
      m = handoff::encode(message);
      return true;
    };
    cluster_.open_everywhere(request_);
    cluster_.run();
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
      if (!cluster_.ready(request_, 0, {layer, 1}, 16).ok()) return;  // decode has refused it
      cluster_.run();
    }
    cluster_.finish_everywhere(request_);
    cluster_.run();
  }
  Cluster cluster_;
  const Request request_ = cluster_.make_request(1, 16, 0, GetParam());
};
INSTANTIATE_TEST_SUITE_P(All, HandoffCounts,
                         ::testing::Values(HandoffMode::push, HandoffMode::pull),
                         [](const auto& param) { return std::string(to_string(param.param)); });

TEST_P(HandoffCounts, AreAsTheyCame) {
  move([](handoff::Message&) {});
  cluster_.expect_committed(request_);
}

TEST_P(HandoffCounts, AGapIsCorrupt) {
  move([](handoff::Message& message) {
    auto* const segment = std::get_if<handoff::SegmentMessage>(&message.body);
    if (segment != nullptr && segment->seq == 2) segment->seq = 3;
  });
  EXPECT_EQ(cluster_.seen_decode(1).code, Code::corrupt);
  EXPECT_EQ(cluster_.seen_decode(1).committed, 0);
}

TEST_P(HandoffCounts, AFinishOfMoreSegmentsIsCorrupt) {
  move([](handoff::Message& message) {
    if (auto* const finish = std::get_if<handoff::Finish>(&message.body)) ++finish->segments;
  });
  EXPECT_EQ(cluster_.seen_decode(1).code, Code::corrupt);
  EXPECT_EQ(cluster_.seen_decode(1).committed, 0);
}

TEST_P(HandoffCounts, AFinishOfFewerSegmentsIsCorrupt) {
  move([](handoff::Message& message) {
    if (auto* const finish = std::get_if<handoff::Finish>(&message.body)) --finish->segments;
  });
  EXPECT_EQ(cluster_.seen_decode(1).code, Code::corrupt);
  EXPECT_EQ(cluster_.seen_decode(1).committed, 0);
}

// Messages that no correct peer sends: the room they name may fail, nothing else is harmed.
TEST(HandoffHostile, MutatedTrafficHarmsNobodyElse) {
  const ExpectLog log("handoff.");
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options;
    options.seed = seed;
    options.decode = {2, 1};
    options.config.crc = seed % 2 == 0 ? "all" : "off";
    Cluster cluster(options);
    auto& random = cluster.world.random;
    const HandoffMode mode = seed % 3 == 0 ? HandoffMode::pull : HandoffMode::push;
    const Request victim = cluster.make_request(1, 16, 0, mode);
    const Request other = cluster.make_request(2, 16, 0, mode);
    // Each message of room 1 is sometimes repeated with changed bytes behind the header's room.
    cluster.world.on_message = [&](std::size_t from, std::size_t to, std::vector<std::byte>& m) {
      const auto message = handoff::decode(m);
      if (!message.ok() || message->room != 1 || random() % 3 != 0) return true;
      std::vector<std::byte> bad = m;
      for (std::uint64_t i = 0; i <= random() % 3; ++i) {
        const std::size_t at =
            random() % 2 == 0 || bad.size() <= handoff::kHeaderBytes
                ? 4 + random() % 4
                : handoff::kHeaderBytes + random() % (bad.size() - handoff::kHeaderBytes);
        bad[at] = static_cast<std::byte>(random());
      }
      if (random() % 2 == 0) {
        m = std::move(bad);
      } else {
        cluster.world.inject(from, to, std::move(bad));
      }
      return true;
    };
    cluster.open_everywhere(victim);
    cluster.open_everywhere(other);
    cluster.run_at_random(2000);
    for (std::size_t p = 0; p < cluster.prefill_count(); ++p) {
      (void)cluster.ready(victim, p, {0, 4}, 16);
      (void)cluster.prefill(p).endpoint->finish(1, {});
    }
    cluster.finish_everywhere(other);
    cluster.run_at_random();
    cluster.world.on_message = nullptr;
    cluster.advance_ms(31'000);
    cluster.expect_committed(other);
    for (std::size_t d = 0; d < 2; ++d) EXPECT_EQ(cluster.seen_decode(1, d).terminals(), 1);
    EXPECT_EQ(cluster.seen_prefill(1).terminals(), 1);
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace kvl::test
