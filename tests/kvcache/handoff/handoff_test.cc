// Handoffs that end well, over every shape, and the greeting before them.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/kvcache/handoff/cluster.h"
#include "tests/support/log_guard.h"

namespace kvl::test {
namespace {

struct Shape {
  const char* name;
  ParallelSizes prefill, decode;
  std::uint32_t prefill_page = 4, decode_page = 4;
  bool mla = false;
  std::uint32_t kv_heads = 4;
  PageOrder prefill_order = PageOrder::layer_first;
  TokenOrder decode_tokens = TokenOrder::nhd;
};

ClusterOptions options_of(const Shape& shape) {
  ClusterOptions options;
  options.geometry.layers = 5;
  options.geometry.mla = shape.mla;
  options.geometry.kv_heads = shape.mla ? 1 : shape.kv_heads;
  options.prefill = shape.prefill;
  options.decode = shape.decode;
  options.prefill_layout.page_tokens = shape.prefill_page;
  options.decode_layout.page_tokens = shape.decode_page;
  options.prefill_layout.order = shape.prefill_order;
  options.decode_layout.token_order = shape.decode_tokens;
  return options;
}

class HandoffShapes : public ::testing::TestWithParam<std::tuple<Shape, HandoffMode>> {};

TEST_P(HandoffShapes, EveryByteArrivesAndTheMetadataAfterThem) {
  const auto& [shape, mode] = GetParam();
  for (const char* crc : {"off", "sampled", "all"}) {
    ClusterOptions options = options_of(shape);
    options.config.crc = crc;
    options.config.crc_sample = 3;
    Cluster cluster(options);
    const Request request = cluster.make_request(77, 23, 0, mode);
    cluster.open_everywhere(request);
    cluster.run();
    for (std::uint32_t layer = 0; layer < options.geometry.layers; ++layer) {
      for (std::size_t p = 0; p < cluster.prefill_count(); ++p) {
        ASSERT_TRUE(cluster.ready(request, p, {layer, 1}, request.tokens).ok());
      }
      cluster.run();
      for (std::size_t d = 0; d < cluster.decode_count(); ++d) {
        const LayoutGroup& group = cluster.decode(d).layout.groups()[0];
        const auto& layers = cluster.seen_decode(77, d).layers;
        EXPECT_EQ(std::ranges::count(layers, layer), group.layers.contains(layer) ? 1 : 0);
        EXPECT_EQ(cluster.seen_decode(77, d).committed, 0);
      }
    }
    for (std::size_t p = 0; p < cluster.prefill_count(); ++p) {
      EXPECT_EQ(cluster.seen_prefill(77, p).accepted, 1);
      ASSERT_TRUE(cluster.prefill(p).endpoint->finish(77, Cluster::metadata(request, p)).ok());
    }
    cluster.run();
    cluster.expect_committed(request);
    cluster.expect_nothing_open();
    for (std::uint32_t d = 0; d < cluster.decode_count(); ++d) {
      const auto routes = *handoff_sources(options.geometry, options.prefill, options.decode, d);
      const Seen& seen = cluster.seen_decode(77, d);
      ASSERT_EQ(seen.metadata.size(), routes.size());
      for (std::size_t i = 0; i < routes.size(); ++i) {
        EXPECT_EQ(seen.metadata[i], Cluster::metadata(request, routes[i].src_rank));
      }
      EXPECT_EQ(seen.bytes, cluster.decode(d).layout.page_bytes(0) / shape.decode_page * 23);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, HandoffShapes,
    ::testing::Combine(
        ::testing::Values(
            Shape{"equal", {1, 1}, {1, 1}}, Shape{"tp4to2", {4, 1}, {2, 1}},
            Shape{"tp2to4", {2, 1}, {4, 1}}, Shape{"tp4to1", {4, 1}, {1, 1}},
            Shape{"pp2to1", {1, 2}, {1, 1}}, Shape{"pp1to3", {1, 1}, {1, 3}},
            Shape{"tp2pp2to4", {2, 2}, {4, 1}},
            Shape{"replicated", {4, 1}, {2, 1}, 4, 4, false, 2},
            Shape{"pages4to8", {2, 1}, {1, 1}, 4, 8}, Shape{"pages8to3", {1, 1}, {1, 1}, 8, 3},
            Shape{"mla4to2", {4, 1}, {2, 1}, 4, 2, true},
            Shape{"mla1to4", {1, 1}, {4, 1}, 4, 4, true},
            Shape{
                "orders", {2, 1}, {1, 1}, 4, 4, false, 4, PageOrder::page_first, TokenOrder::hnd}),
        ::testing::Values(HandoffMode::push, HandoffMode::pull)),
    [](const auto& param) {
      return std::string(std::get<0>(param.param).name) + "_" +
             std::string(to_string(std::get<1>(param.param)));
    });

class HandoffModes : public ::testing::TestWithParam<HandoffMode> {};
INSTANTIATE_TEST_SUITE_P(All, HandoffModes, ::testing::Values(HandoffMode::push, HandoffMode::pull),
                         [](const auto& param) { return std::string(to_string(param.param)); });

TEST_P(HandoffModes, ChunkedPrefillWithPagesThatComeLater) {
  Cluster cluster;
  const Request request = cluster.make_request(5, 22, 0, GetParam());
  HandoffEndpoint& prefill = *cluster.prefill().endpoint;
  const auto& pages = request.prefill_pages[0];
  ASSERT_TRUE(prefill.open_prefill({5, 22, 0}).ok());
  ASSERT_TRUE(cluster.open_decode(request).ok());
  EXPECT_EQ(prefill.ready(5, {0, 4}, 9).code(), Code::invalid_argument);  // no page yet
  ASSERT_TRUE(prefill.add_pages(5, 0, std::span(pages).first(3)).ok());
  ASSERT_TRUE(prefill.ready(5, {0, 4}, 9).ok());
  EXPECT_EQ(prefill.ready(5, {0, 4}, 8).code(), Code::invalid_argument);  // backwards
  cluster.run();
  EXPECT_TRUE(cluster.seen_decode(5).layers.empty());
  ASSERT_TRUE(prefill.add_pages(5, 0, std::span(pages).subspan(3)).ok());
  EXPECT_EQ(prefill.finish(5, {}).code(), Code::invalid_argument);  // not all ready
  ASSERT_TRUE(prefill.ready(5, {2, 2}, 22).ok());
  cluster.run();
  EXPECT_EQ(cluster.seen_decode(5).layers, (std::vector<std::uint32_t>{2, 3}));
  ASSERT_TRUE(prefill.ready(5, {0, 4}, 22).ok());
  ASSERT_TRUE(prefill.finish(5, {}).ok());
  cluster.run();
  cluster.expect_committed(request);
  cluster.expect_nothing_open();
}

TEST_P(HandoffModes, EitherSideMayComeFirst) {
  Cluster cluster;
  const Request early = cluster.make_request(1, 10, 0, GetParam());
  ASSERT_TRUE(cluster.open_decode(early).ok());
  cluster.run();
  ASSERT_TRUE(cluster.open_prefill(early).ok());
  cluster.finish_everywhere(early);
  cluster.run();
  cluster.expect_committed(early);

  const Request late = cluster.make_request(2, 10, 0, GetParam());
  ASSERT_TRUE(cluster.open_prefill(late).ok());
  cluster.finish_everywhere(late);
  cluster.run();
  ASSERT_TRUE(cluster.open_decode(late).ok());
  cluster.run();
  cluster.expect_committed(late);
  cluster.expect_nothing_open();
}

TEST_P(HandoffModes, SkippedTokensAreNotTouched) {
  for (const std::uint64_t skip : {4U, 6U, 8U, 21U}) {
    Cluster cluster;
    const Request request = cluster.make_request(9, 22, skip, GetParam());
    const std::vector<std::byte> before = cluster.decode().memory;
    cluster.open_everywhere(request);
    cluster.finish_everywhere(request);
    cluster.run();
    cluster.expect_committed(request);
    EXPECT_EQ(cluster.seen_prefill(9).skip_tokens, skip);
    const PageLayout& layout = cluster.decode().layout;
    std::uint64_t changed = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
      changed += before[i] != cluster.decode().memory[i] ? 1 : 0;
    }
    EXPECT_LE(changed, layout.page_bytes(0) / 4 * (22 - skip));
    EXPECT_EQ(cluster.seen_decode(9).bytes, layout.page_bytes(0) / 4 * (22 - skip));
  }
}

TEST_P(HandoffModes, ManyRoomsAtOnceAndAnEngineThatIsFull) {
  Cluster cluster;
  cluster.options.seed = 4;
  std::vector<Request> requests;
  for (std::uint64_t room = 1; room <= 12; ++room) {
    requests.push_back(cluster.make_request(room, 5 + room, room % 3, GetParam()));
    cluster.open_everywhere(requests.back());
  }
  cluster.world.engine(0).refuse_submits = 7;
  cluster.world.engine(1).refuse_submits = 7;
  cluster.world.engine(0).refuse_sends = 5;
  for (const Request& request : requests) cluster.finish_everywhere(request);
  for (int i = 0; i < 20; ++i) cluster.run();
  for (const Request& request : requests) cluster.expect_committed(request);
  cluster.expect_nothing_open();
}

TEST_P(HandoffModes, LargeSegmentsAreCutSmallLayersJoined) {
  Cluster joined;
  const Request a = joined.make_request(1, 16, 0, GetParam());
  joined.open_everywhere(a);
  joined.run();
  joined.finish_everywhere(a);
  joined.run();
  joined.expect_committed(a);
  const std::size_t mover = GetParam() == HandoffMode::push ? 0 : 1;
  EXPECT_EQ(joined.world.engine(mover).submitted, 1U);

  ClusterOptions options;
  options.config.segment_bytes = 4096;  // below a layer's bytes
  options.geometry.head_dim = 64;
  Cluster cut(options);
  const Request b = cut.make_request(1, 16, 0, GetParam());
  cut.open_everywhere(b);
  cut.run();
  cut.finish_everywhere(b);
  cut.run();
  cut.expect_committed(b);
  EXPECT_EQ(cut.world.engine(mover).submitted, 4U);
}

TEST(HandoffGreeting, DifferentModelsAndLayoutsAreRefusedOnBothSides) {
  const ExpectLog log("handoff.peer_refused");
  ManualClock clock;
  FakeWorld world;
  const auto make = [&](const char* model, std::uint32_t head_dim, std::vector<std::byte>& memory) {
    const ModelGeometry geometry{2, 2, head_dim, false, Dtype::bf16};
    HandoffRank rank;
    rank.layout = *make_layout(geometry, {}, {.page_tokens = 4, .page_count = 4});
    memory.resize(rank.layout.region_bytes(0));
    rank.regions = {{MemoryHandle{1}, memory.data(), memory.size()}};
    rank.model = model;
    return std::move(*HandoffEndpoint::open(world.add_engine(), clock, rank));
  };
  std::vector<std::byte> m0, m1, m2;
  auto a = make("llama", 8, m0), b = make("qwen", 8, m1), c = make("llama", 16, m2);
  std::vector<HandoffEndpoint*> all{a.get(), b.get(), c.get()};
  world.connect(0, 1);
  world.connect(0, 2);
  for (int i = 0; i < 20; ++i) {
    world.step_in_order();
    for (std::size_t e = 0; e < 3; ++e) {
      std::vector<EngineEvent> events(4);
      while (const std::size_t n = world.engine(e).poll(events)) {
        for (std::size_t k = 0; k < n; ++k) all[e]->on_event(events[k]);
      }
    }
  }
  const auto refusals = [](HandoffEndpoint& endpoint) {
    std::vector<HandoffEvent> events(16);
    events.resize(endpoint.poll(events));
    return events;
  };
  const auto seen = refusals(*a);
  ASSERT_EQ(seen.size(), 2U);
  for (const HandoffEvent& event : seen) {
    EXPECT_EQ(event.kind, HandoffEvent::Kind::peer_refused);
    EXPECT_EQ(event.code, Code::invalid_argument);
    EXPECT_FALSE(event.reason.empty());
  }
  EXPECT_EQ(refusals(*b).size(), 1U);
  EXPECT_EQ(refusals(*c).size(), 1U);
  DecodeOpen open;
  open.room = 1;
  open.tokens = 4;
  open.sources = {{FakeWorld::handle(1), 1}};
  open.pages = {{{0}, 0}};
  EXPECT_EQ(a->open_decode(open).code(), Code::unsupported);
}

TEST(HandoffOpen, RanksThatContradictThemselves) {
  FakeWorld world;
  ManualClock clock;
  FakeEngine& engine = world.add_engine();
  HandoffRank rank;
  rank.layout =
      *make_layout({2, 2, 8, false, Dtype::bf16}, {}, {.page_tokens = 4, .page_count = 4});
  std::string error;
  EXPECT_EQ(HandoffEndpoint::open(engine, clock, rank, {}, &error).code(), Code::invalid_argument);
  EXPECT_FALSE(error.empty());
  rank.regions = {{MemoryHandle{1}, nullptr, rank.layout.region_bytes(0) - 1}};
  EXPECT_FALSE(HandoffEndpoint::open(engine, clock, rank).ok());
  rank.regions[0].bytes++;
  EXPECT_TRUE(HandoffEndpoint::open(engine, clock, rank).ok());
  HandoffConfig config;
  config.crc = "all";
  EXPECT_FALSE(HandoffEndpoint::open(engine, clock, rank, config).ok());
  rank.model.assign(300, 'x');
  EXPECT_FALSE(HandoffEndpoint::open(engine, clock, rank).ok());
  for (const Setting& row : handoff_settings()) {
    EXPECT_TRUE(row.name.starts_with("handoff.")) << row.name;
    EXPECT_FALSE(row.help.empty());
  }
}

}  // namespace
}  // namespace kvl::test
