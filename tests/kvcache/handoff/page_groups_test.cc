// Layouts of several page groups, each with its own page size and page ids.
#include <gtest/gtest.h>

#include <cstring>

#include "kvl/handoff.h"
#include "tests/kvcache/handoff/fake_world.h"

namespace kvl::test {
namespace {

constexpr std::uint32_t kPages = 8;

// Layers 0-1 in pages of `first` tokens, layers 2-4 (MLA) in pages of `second`, one region.
PageLayout two_groups(std::uint32_t first, std::uint32_t second) {
  LayoutGroup heads;
  heads.layers = {0, 2};
  heads.kv_heads = 2;
  heads.head_dim = 4;
  heads.page_tokens = first;
  heads.page_count = kPages;
  heads.page_stride = std::uint64_t{first} * 2 * 4 * 2;
  LayoutGroup latent;
  latent.layers = {2, 3};
  latent.kv_heads = 1;
  latent.head_dim = 6;
  latent.mla = true;
  latent.page_tokens = second;
  latent.page_count = kPages;
  latent.page_stride = std::uint64_t{second} * 6 * 2;
  std::uint64_t at = 0;
  const auto place = [&at](const LayoutGroup& group) {
    const TensorPlace here{0, at};
    at += group.page_stride * kPages;
    return here;
  };
  for (int i = 0; i < 2; ++i) heads.k.push_back(place(heads));
  for (int i = 0; i < 2; ++i) heads.v.push_back(place(heads));
  for (int i = 0; i < 3; ++i) latent.k.push_back(place(latent));
  return PageLayout::create(5, {}, {heads, latent}).value();
}

struct Rank {
  PageLayout layout;
  std::vector<std::byte> memory;
  std::unique_ptr<HandoffEndpoint> endpoint;
  std::vector<HandoffEvent> events;
  std::vector<std::vector<std::uint32_t>> pages;  // by group

  // Calls f(address of the first byte, bytes) for each token and head of a group's layer.
  template <typename F>
  void for_each(std::uint64_t tokens, F&& f) {
    for (std::size_t g = 0; g < layout.groups().size(); ++g) {
      const LayoutGroup& group = layout.groups()[g];
      for (std::uint32_t layer = group.layers.first; layer < group.layers.end(); ++layer) {
        for (const KvPart part : {KvPart::k, KvPart::v}) {
          if (group.mla && part == KvPart::v) continue;
          for (std::uint64_t t = 0; t < tokens; ++t) {
            for (std::uint32_t h = 0; h < group.heads.count; ++h) {
              const auto where =
                  layout.address(g, layer, part, pages[g][t / group.page_tokens],
                                 static_cast<std::uint32_t>(t % group.page_tokens), h);
              f(memory.data() + where->offset, group.head_bytes());
            }
          }
        }
      }
    }
  }
};

class PageGroups : public ::testing::TestWithParam<HandoffMode> {};
INSTANTIATE_TEST_SUITE_P(All, PageGroups, ::testing::Values(HandoffMode::push, HandoffMode::pull),
                         [](const auto& param) { return std::string(to_string(param.param)); });

TEST_P(PageGroups, EachGroupHasItsOwnPages) {
  FakeWorld world;
  Rank prefill, decode;
  prefill.layout = two_groups(4, 2);
  decode.layout = two_groups(3, 5);
  prefill.pages = {{7, 1, 4}, {0, 3, 2, 6, 1}};
  decode.pages = {{2, 0, 6, 5}, {4, 1}};
  HandoffConfig config;
  config.crc = "all";
  for (Rank* rank : {&prefill, &decode}) {
    rank->memory.resize(rank->layout.region_bytes(0));
    FakeEngine& engine = world.add_engine();
    Memory memory{rank->memory.data(), rank->memory.size()};
    HandoffRank self{rank->layout,
                     {{*engine.register_memory(memory), rank->memory.data(), rank->memory.size()}},
                     "mixed"};
    rank->endpoint = std::move(*HandoffEndpoint::open(engine, world.clock, self, config));
  }
  constexpr std::uint64_t kTokens = 10;
  std::vector<std::byte> expected;
  prefill.for_each(kTokens, [&](std::byte* at, std::uint64_t bytes) {
    for (std::uint64_t b = 0; b < bytes; ++b) {
      at[b] = static_cast<std::byte>(world.random());
      expected.push_back(at[b]);
    }
  });
  const auto run = [&] {
    for (int quiet = 0; quiet < 3; ++quiet) {
      if (world.step_in_order()) quiet = 0;
      for (std::size_t i = 0; i < 2; ++i) {
        Rank& rank = i == 0 ? prefill : decode;
        std::vector<EngineEvent> events(4);
        while (const std::size_t n = world.engine(i).poll(events)) {
          for (std::size_t k = 0; k < n; ++k) rank.endpoint->on_event(events[k]);
          quiet = 0;
        }
        rank.endpoint->step();
        std::vector<HandoffEvent> told(4);
        while (const std::size_t n = rank.endpoint->poll(told)) {
          rank.events.insert(rank.events.end(), told.begin(),
                             told.begin() + static_cast<std::ptrdiff_t>(n));
        }
      }
    }
  };
  world.connect(0, 1);
  run();
  DecodeOpen open;
  open.room = 1;
  open.tokens = kTokens;
  open.mode = GetParam();
  open.sources = {{FakeWorld::handle(0), 1}};
  open.pages = {{decode.pages[0], 0}, {decode.pages[1], 0}};
  ASSERT_TRUE(decode.endpoint->open_decode(open).ok());
  ASSERT_TRUE(prefill.endpoint->open_prefill({1, kTokens, 0}).ok());
  run();
  // The first group's layers may go before the second group has its pages.
  ASSERT_TRUE(prefill.endpoint->add_pages(1, 0, prefill.pages[0]).ok());
  EXPECT_EQ(prefill.endpoint->ready(1, {0, 5}, kTokens).code(), Code::invalid_argument);
  ASSERT_TRUE(prefill.endpoint->ready(1, {0, 2}, kTokens).ok());
  run();
  ASSERT_TRUE(prefill.endpoint->add_pages(1, 1, prefill.pages[1]).ok());
  ASSERT_TRUE(prefill.endpoint->ready(1, {0, 5}, kTokens).ok());
  ASSERT_TRUE(prefill.endpoint->finish(1, {}).ok());
  run();
  ASSERT_FALSE(decode.events.empty());
  EXPECT_EQ(decode.events.back().kind, HandoffEvent::Kind::committed)
      << decode.events.back().reason;
  std::size_t at_byte = 0, wrong = 0;
  decode.for_each(kTokens, [&](const std::byte* at, std::uint64_t bytes) {
    for (std::uint64_t b = 0; b < bytes; ++b) wrong += at[b] != expected[at_byte++] ? 1 : 0;
  });
  EXPECT_EQ(at_byte, expected.size());
  EXPECT_EQ(wrong, 0U);
}

}  // namespace
}  // namespace kvl::test
