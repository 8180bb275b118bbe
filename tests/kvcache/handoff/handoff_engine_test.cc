// Handoffs over real engines on loopback: tcp and shm, with rail threads and driven by the caller.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <tuple>

#include "kvl/handoff.h"
#include "tests/support/engine_pair.h"

namespace kvl::test {
namespace {

const ModelGeometry kGeometry{4, 4, 32, false, Dtype::bf16};
constexpr std::uint64_t kTokens = 200;

struct Rank {
  std::unique_ptr<Engine> engine;
  std::unique_ptr<SharedBuffer> buffer;
  PageLayout layout;
  std::unique_ptr<HandoffEndpoint> endpoint;
  std::vector<std::uint32_t> pages;
  std::vector<HandoffEvent> events;

  const HandoffEvent* last(HandoffEvent::Kind kind) const {
    for (auto event = events.rbegin(); event != events.rend(); ++event) {
      if (event->kind == kind) return &*event;
    }
    return nullptr;
  }
  bool ended() const {
    return last(HandoffEvent::Kind::committed) != nullptr ||
           last(HandoffEvent::Kind::failed) != nullptr;
  }
};

class RealCluster {
 public:
  RealCluster(const Flags& flags, ParallelSizes prefill, ParallelSizes decode)
      : prefill_sizes_(prefill), decode_sizes_(decode), flags_(flags) {
    for (std::uint32_t i = 0; i < prefill.tp_size * prefill.pp_size; ++i) {
      add(prefill_, slice_at(prefill.tp_size, prefill.pp_size, i), 16, true);
    }
    for (std::uint32_t i = 0; i < decode.tp_size * decode.pp_size; ++i) {
      add(decode_, slice_at(decode.tp_size, decode.pp_size, i), 8, false);
    }
    for (Rank& rank : prefill_) fill(rank);
  }
  ~RealCluster() {
    for (Rank* rank : all()) rank->engine.reset();  // transfers read the endpoints' plans
  }

  std::vector<Rank>& prefill() { return prefill_; }
  std::vector<Rank>& decode() { return decode_; }

  void open(HandoffMode mode) {
    for (Rank& rank : prefill_) {
      EXPECT_TRUE(rank.endpoint->open_prefill({7, kTokens, 8000}).ok());
      EXPECT_TRUE(rank.endpoint->add_pages(7, 0, rank.pages).ok());
    }
    for (std::uint32_t d = 0; d < decode_.size(); ++d) {
      DecodeOpen open;
      open.room = 7;
      open.tokens = kTokens;
      open.mode = mode;
      open.deadline_ms = 8000;
      open.pages = {{decode_[d].pages, 0}};
      const auto routes = *handoff_sources(kGeometry, prefill_sizes_, decode_sizes_, d);
      for (const HandoffRoute& route : routes) {
        const auto address = prefill_[route.src_rank].engine->address();
        open.sources.push_back({*decode_[d].engine->connect(address), route.accepts});
      }
      open.group_rank = d;
      open.group_size = static_cast<std::uint32_t>(decode_.size());
      if (d > 0) open.lead = *decode_[d].engine->connect(decode_[0].engine->address());
      const Status status = decode_[d].endpoint->open_decode(open);
      EXPECT_TRUE(status.ok()) << status.to_string();
    }
  }

  // Drives everybody until `done`, at most 10 s.
  bool drive(const std::function<bool()>& done) {
    const std::int64_t end_ns = clock_.now_ns() + 10'000'000'000;
    while (!done()) {
      if (clock_.now_ns() > end_ns) return false;
      bool moved = false;
      for (Rank* rank : all()) moved = drive(*rank) || moved;
      if (!moved) decode_[0].engine->wait(1);
    }
    return true;
  }

  bool all_ended() {
    for (Rank* rank : all()) {
      if (rank->engine != nullptr && !rank->ended()) return false;
    }
    return true;
  }

  std::uint64_t wrong_bytes() {
    std::uint64_t wrong = 0;
    for (Rank& rank : decode_) {
      for_each_head(rank, [&](std::byte* at, std::uint64_t seed, std::uint64_t bytes) {
        std::mt19937_64 random(seed);
        for (std::uint64_t b = 0; b < bytes; ++b) {
          wrong += at[b] != static_cast<std::byte>(random()) ? 1 : 0;
        }
      });
    }
    return wrong;
  }

 private:
  void add(std::vector<Rank>& ranks, const ParallelSlice& slice, std::uint32_t page_tokens,
           bool prefill) {
    Rank& rank = ranks.emplace_back();
    rank.layout =
        make_layout(kGeometry, slice, {.page_tokens = page_tokens, .page_count = 64}).value();
    rank.buffer = SharedBuffer::open(rank.layout.region_bytes(0)).value();
    std::string error;
    auto engine = Engine::open(engine_test_settings(flags_), &error);
    EXPECT_TRUE(engine.ok()) << error;
    rank.engine = std::move(*engine);
    HandoffRank self;
    self.layout = rank.layout;
    self.regions = {{*rank.engine->register_memory(rank.buffer->memory(Access::remote_all)),
                     rank.buffer->data(), rank.buffer->bytes()}};
    self.model = "test";
    self.prefill = prefill;
    self.decode = !prefill;
    HandoffConfig config;
    config.crc = "all";
    config.segment_bytes = 16 << 10;
    rank.endpoint = std::move(*HandoffEndpoint::open(*rank.engine, clock_, self, config));
    std::mt19937 random(static_cast<unsigned>(flat_rank(slice)) + page_tokens);
    for (std::uint32_t i = 0; i < 64; ++i) rank.pages.push_back(i);
    std::shuffle(rank.pages.begin(), rank.pages.end(), random);
    rank.pages.resize((kTokens + page_tokens - 1) / page_tokens);
  }

  template <typename F>
  void for_each_head(Rank& rank, F&& f) {
    const LayoutGroup& group = rank.layout.groups()[0];
    for (std::uint32_t layer = group.layers.first; layer < group.layers.end(); ++layer) {
      for (const KvPart part : {KvPart::k, KvPart::v}) {
        for (std::uint64_t t = 0; t < kTokens; ++t) {
          for (std::uint32_t h = group.heads.first; h < group.heads.end(); ++h) {
            const auto where =
                rank.layout.address(0, layer, part, rank.pages[t / group.page_tokens],
                                    static_cast<std::uint32_t>(t % group.page_tokens), h);
            const std::uint64_t seed =
                ((layer * 2 + static_cast<std::uint64_t>(part)) * kTokens + t) * 64 + h;
            f(rank.buffer->data() + where->offset, seed, group.head_bytes());
          }
        }
      }
    }
  }

  void fill(Rank& rank) {
    for_each_head(rank, [](std::byte* at, std::uint64_t seed, std::uint64_t bytes) {
      std::mt19937_64 random(seed);
      for (std::uint64_t b = 0; b < bytes; ++b) at[b] = static_cast<std::byte>(random());
    });
  }

  bool drive(Rank& rank) {
    if (rank.engine == nullptr) return false;
    EngineEvent events[16];
    const std::size_t count = rank.engine->poll(events);
    for (std::size_t i = 0; i < count; ++i) rank.endpoint->on_event(events[i]);
    rank.endpoint->step();
    HandoffEvent told[8];
    while (const std::size_t n = rank.endpoint->poll(told)) {
      for (std::size_t i = 0; i < n; ++i) rank.events.push_back(std::move(told[i]));
    }
    return count > 0;
  }

  std::vector<Rank*> all() {
    std::vector<Rank*> ranks;
    for (Rank& rank : prefill_) ranks.push_back(&rank);
    for (Rank& rank : decode_) ranks.push_back(&rank);
    return ranks;
  }

  const SteadyClock clock_;
  const ParallelSizes prefill_sizes_, decode_sizes_;
  const Flags flags_;
  std::vector<Rank> prefill_, decode_;
};

using Parameters = std::tuple<std::string, std::string, HandoffMode>;

class HandoffEngine : public ::testing::TestWithParam<Parameters> {
 protected:
  Flags flags() const {
    return {{"require", std::get<0>(GetParam())}, {"progress", std::get<1>(GetParam())}};
  }
  HandoffMode mode() const { return std::get<2>(GetParam()); }
};

std::string engine_name(const ::testing::TestParamInfo<Parameters>& info) {
  return std::get<0>(info.param) + "_" + std::get<1>(info.param) + "_" +
         std::string(to_string(std::get<2>(info.param)));
}
INSTANTIATE_TEST_SUITE_P(
    All, HandoffEngine,
    ::testing::Combine(::testing::Values("tcp", "shm"), ::testing::Values("thread", "caller"),
                       ::testing::Values(HandoffMode::push, HandoffMode::pull)),
    engine_name);

TEST_P(HandoffEngine, LayerByLayerBetweenUnequalRanks) {
  const std::pair<ParallelSizes, ParallelSizes> shapes[] = {{{2, 1}, {1, 1}}, {{1, 1}, {2, 1}}};
  for (const auto& [from, to] : shapes) {
    RealCluster cluster(flags(), from, to);
    cluster.open(mode());
    for (std::uint32_t layer = 0; layer < kGeometry.layers; ++layer) {
      for (Rank& rank : cluster.prefill()) {
        ASSERT_TRUE(rank.endpoint->ready(7, {layer, 1}, kTokens).ok());
      }
      ASSERT_TRUE(cluster.drive([&] {
        const HandoffEvent* ready = cluster.decode()[0].last(HandoffEvent::Kind::layer_ready);
        return ready != nullptr && ready->layer == layer;
      })) << "layer "
          << layer;
    }
    const std::vector<std::byte> metadata(1000, std::byte{9});
    for (Rank& rank : cluster.prefill()) ASSERT_TRUE(rank.endpoint->finish(7, metadata).ok());
    ASSERT_TRUE(cluster.drive([&] { return cluster.all_ended(); }));
    for (Rank& rank : cluster.decode()) {
      const HandoffEvent* done = rank.last(HandoffEvent::Kind::committed);
      ASSERT_NE(done, nullptr) << rank.last(HandoffEvent::Kind::failed)->reason;
      EXPECT_EQ(done->metadata.at(0), metadata);
    }
    for (Rank& rank : cluster.prefill()) {
      EXPECT_NE(rank.last(HandoffEvent::Kind::committed), nullptr);
    }
    EXPECT_EQ(cluster.wrong_bytes(), 0U);
  }
}

TEST_P(HandoffEngine, AbortInTheMiddleReleasesThePages) {
  RealCluster cluster(flags(), {1, 1}, {1, 1});
  Rank &prefill = cluster.prefill()[0], &decode = cluster.decode()[0];
  cluster.open(mode());
  ASSERT_TRUE(prefill.endpoint->ready(7, {0, 2}, kTokens).ok());
  ASSERT_TRUE(
      cluster.drive([&] { return decode.last(HandoffEvent::Kind::layer_ready) != nullptr; }));
  ASSERT_TRUE(prefill.endpoint->ready(7, {2, 2}, kTokens).ok());
  ASSERT_TRUE(decode.endpoint->abort(HandoffSide::decode, 7).ok());
  ASSERT_TRUE(cluster.drive([&] {
    return cluster.all_ended() && decode.endpoint->open_rooms() == 0 &&
           prefill.endpoint->open_rooms() == 0;
  }));
  EXPECT_EQ(prefill.last(HandoffEvent::Kind::failed)->code, Code::aborted);
}

TEST_P(HandoffEngine, APrefillRankThatGoesAwayFailsTheRequest) {
  RealCluster cluster(flags(), {2, 1}, {1, 1});
  Rank& decode = cluster.decode()[0];
  cluster.open(mode());
  for (Rank& rank : cluster.prefill()) ASSERT_TRUE(rank.endpoint->ready(7, {0, 2}, kTokens).ok());
  ASSERT_TRUE(
      cluster.drive([&] { return decode.last(HandoffEvent::Kind::layer_ready) != nullptr; }));
  cluster.prefill()[1].engine.reset();
  ASSERT_TRUE(cluster.drive([&] { return decode.ended(); }));
  EXPECT_EQ(decode.last(HandoffEvent::Kind::failed)->code, Code::peer_lost);
  ASSERT_TRUE(cluster.drive([&] { return cluster.prefill()[0].ended(); }));
  // Where its memory was mapped, only the end of its process proves that it writes no more.
  if (std::get<0>(GetParam()) == "shm" && mode() == HandoffMode::push) return;
  EXPECT_TRUE(cluster.drive([&] { return decode.endpoint->open_rooms() == 0; }));
}

}  // namespace
}  // namespace kvl::test
