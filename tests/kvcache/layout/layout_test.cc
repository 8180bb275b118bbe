// PageLayout: geometry figures, slices, addresses against a naive enumeration, wire form, hostile
// bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "kvl/page_layout.h"

namespace kvl {
namespace {

constexpr ModelGeometry kSmall{.layers = 3, .kv_heads = 4, .head_dim = 2, .dtype = Dtype::bf16};
constexpr ModelGeometry kLatent{
    .layers = 3, .kv_heads = 1, .head_dim = 6, .mla = true, .dtype = Dtype::fp8};

// Every shape that make_layout knows.
std::vector<LayoutOptions> all_options() {
  std::vector<LayoutOptions> all;
  for (const PageOrder order : {PageOrder::layer_first, PageOrder::page_first}) {
    for (const RegionUse regions : {RegionUse::one, RegionUse::per_layer, RegionUse::per_tensor}) {
      for (const bool joined : {false, true}) {
        for (const TokenOrder token_order : {TokenOrder::nhd, TokenOrder::hnd}) {
          if (order == PageOrder::page_first && regions != RegionUse::one) continue;
          if (joined && regions == RegionUse::per_tensor) continue;
          all.push_back({.page_tokens = 4,
                         .page_count = 5,
                         .order = order,
                         .kv_joined = joined,
                         .token_order = token_order,
                         .regions = regions,
                         .first_region = 2,
                         .region_offset = 24});
        }
      }
    }
  }
  return all;
}

TEST(Geometry, BytesPerTokenOfKnownModels) {
  EXPECT_EQ(find_geometry("llama-3.1-8b")->bytes_per_token(), 131072U);
  EXPECT_EQ(find_geometry("llama-3.1-70b")->bytes_per_token(), 327680U);
  EXPECT_EQ(find_geometry("qwen3-32b")->bytes_per_token(), 262144U);
  EXPECT_EQ(find_geometry("deepseek-v3")->bytes_per_token(), 70272U);
  EXPECT_EQ(find_geometry("tiny")->bytes_per_token(), 4096U);
  EXPECT_EQ(find_geometry("gpt-2").code(), Code::not_found);
  EXPECT_EQ(known_geometries().size(), 6U);
}

TEST(Geometry, DtypesByName) {
  for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::fp8}) {
    EXPECT_EQ(*parse_dtype(to_string(dtype)), dtype);
    EXPECT_GT(dtype_bytes(dtype), 0U);
  }
  EXPECT_EQ(parse_dtype("int3").code(), Code::invalid_argument);
  EXPECT_EQ(dtype_bytes(static_cast<Dtype>(77)), 0U);
  EXPECT_EQ(to_string(static_cast<Dtype>(77)), "unknown");
}

TEST(Slices, HeadsAreSharedOrReplicated) {
  EXPECT_EQ(*heads_of(8, 2, 1), (Range{4, 4}));
  EXPECT_EQ(*heads_of(8, 8, 3), (Range{3, 1}));
  EXPECT_EQ(*heads_of(2, 8, 3), (Range{0, 1}));
  EXPECT_EQ(*heads_of(2, 8, 4), (Range{1, 1}));
  EXPECT_EQ(heads_of(8, 3, 0).code(), Code::invalid_argument);
  EXPECT_EQ(heads_of(8, 2, 2).code(), Code::invalid_argument);
  EXPECT_EQ(heads_of(8, 0, 0).code(), Code::invalid_argument);
}

TEST(Slices, EarlierStagesHoldOneMore) {
  EXPECT_EQ(layers_of(61, 4, 0), (Range{0, 16}));
  EXPECT_EQ(layers_of(61, 4, 1), (Range{16, 15}));
  EXPECT_EQ(layers_of(61, 4, 3), (Range{46, 15}));
  EXPECT_EQ(layers_of(80, 2, 1), (Range{40, 40}));
  EXPECT_EQ(layers_of(2, 3, 2).count, 0U);
}

// Every (layer, part, page, token, head) of a layout, with all of its bytes.
void expect_bytes_disjoint_and_inside(const PageLayout& layout) {
  const LayoutGroup& g = layout.groups()[0];
  std::set<std::pair<std::uint32_t, std::uint64_t>> seen;
  for (std::uint32_t layer = g.layers.first; layer < g.layers.end(); ++layer) {
    for (const KvPart part : {KvPart::k, KvPart::v}) {
      if (g.mla && part == KvPart::v) continue;
      for (std::uint32_t page = 0; page < g.page_count; ++page) {
        for (std::uint32_t token = 0; token < g.page_tokens; ++token) {
          for (std::uint32_t head = g.heads.first; head < g.heads.end(); ++head) {
            const auto at = layout.address(0, layer, part, page, token, head);
            ASSERT_TRUE(at.ok());
            ASSERT_LE(at->offset + g.head_bytes(), layout.region_bytes(at->region));
            for (std::uint64_t byte = 0; byte < g.head_bytes(); ++byte) {
              ASSERT_TRUE(seen.emplace(at->region, at->offset + byte).second);
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(seen.size(), layout.page_bytes(0) * g.page_count);
}

TEST(MakeLayout, EveryShapeNamesEachByteOnce) {
  for (const LayoutOptions& options : all_options()) {
    for (const ModelGeometry& geometry : {kSmall, kLatent}) {
      const auto layout = make_layout(geometry, {.tp_size = 2, .tp_rank = 1}, options);
      ASSERT_TRUE(layout.ok()) << layout.status().to_string();
      expect_bytes_disjoint_and_inside(*layout);
      EXPECT_EQ(layout->region_bytes(0), 0U) << "unused regions need no bytes";
    }
  }
}

TEST(MakeLayout, PageFirstKeepsAPageTogether) {
  const auto layout = make_layout(
      kSmall, {},
      {.page_tokens = 4, .page_count = 5, .order = PageOrder::page_first, .kv_joined = true});
  EXPECT_EQ(layout->groups()[0].page_stride, layout->page_bytes(0));
  EXPECT_EQ(layout->region_bytes(0), 5 * layout->page_bytes(0));
  EXPECT_EQ(layout->page_bytes(0), 4 * kSmall.bytes_per_token());
}

TEST(MakeLayout, LatentIsWholeOnEveryRank) {
  const auto layout =
      make_layout(*find_geometry("deepseek-v3"), {.tp_size = 8, .tp_rank = 5}, {.page_count = 10});
  EXPECT_EQ(layout->page_bytes(0), 64U * 70272U);
  EXPECT_EQ(layout->groups()[0].heads, (Range{0, 1}));
}

TEST(MakeLayout, RefusesWhatCannotBe) {
  const auto code = [](ModelGeometry geometry, ParallelSlice slice, LayoutOptions options) {
    return make_layout(geometry, slice, options).code();
  };
  const LayoutOptions good{.page_count = 4};
  EXPECT_EQ(code(kSmall, {}, good), Code::ok);
  EXPECT_EQ(code(kSmall, {}, {}), Code::invalid_argument) << "page_count is required";
  EXPECT_EQ(code(kSmall, {}, {.page_tokens = 0, .page_count = 4}), Code::invalid_argument);
  EXPECT_EQ(code(kSmall, {.tp_size = 3}, good), Code::invalid_argument);
  EXPECT_EQ(code(kSmall, {.tp_size = 2, .tp_rank = 2}, good), Code::invalid_argument);
  EXPECT_EQ(code(kSmall, {.pp_size = 0}, good), Code::invalid_argument);
  EXPECT_EQ(code(kSmall, {.pp_size = 4, .pp_rank = 3}, good), Code::invalid_argument)
      << "a stage without layers";
  EXPECT_EQ(code({}, {}, good), Code::invalid_argument);
  EXPECT_EQ(
      code(kSmall, {},
           {.page_count = 4, .order = PageOrder::page_first, .regions = RegionUse::per_layer}),
      Code::invalid_argument);
  EXPECT_EQ(
      code(kSmall, {}, {.page_count = 4, .kv_joined = true, .regions = RegionUse::per_tensor}),
      Code::invalid_argument);
  ModelGeometry huge = kSmall;
  huge.head_dim = 1U << 20;
  huge.kv_heads = 1U << 16;
  EXPECT_EQ(code(huge, {}, {.page_tokens = 1U << 20, .page_count = 0xFFFFFFFF}),
            Code::invalid_argument);
  EXPECT_EQ(code(kSmall, {}, {.page_count = 4, .first_region = 0xFFFFFFFF}),
            Code::invalid_argument);
  EXPECT_EQ(code(kSmall, {}, {.page_count = 4, .region_offset = ~std::uint64_t{0}}),
            Code::invalid_argument);
}

TEST(PageLayout, RefusesOverlappingTensors) {
  const auto layout = make_layout(kSmall, {}, {.page_tokens = 4, .page_count = 5});
  const LayoutGroup good = layout->groups()[0];
  const auto create = [](const LayoutGroup& group) {
    return PageLayout::create(3, {}, {group}).code();
  };
  EXPECT_EQ(create(good), Code::ok);
  LayoutGroup bad = good;
  bad.v[1].offset = bad.k[1].offset + bad.tensor_page_bytes() - 1;
  EXPECT_EQ(create(bad), Code::invalid_argument);
  bad = good;
  bad.page_stride -= 1;
  EXPECT_EQ(create(bad), Code::invalid_argument);
  bad = good;
  bad.k.pop_back();
  EXPECT_EQ(create(bad), Code::invalid_argument);
  bad = good;
  bad.page_stride = ~std::uint64_t{0};
  EXPECT_EQ(create(bad), Code::invalid_argument);
}

TEST(PageLayout, AddressRefusesWhatIsNotHeld) {
  const auto layout = make_layout(kSmall, {.tp_size = 2, .tp_rank = 1, .pp_size = 3, .pp_rank = 1},
                                  {.page_tokens = 4, .page_count = 5});
  EXPECT_TRUE(layout->address(0, 1, KvPart::k, 0, 0, 2).ok());
  EXPECT_EQ(layout->address(1, 1, KvPart::k, 0, 0, 2).code(), Code::invalid_argument);
  EXPECT_EQ(layout->address(0, 0, KvPart::k, 0, 0, 2).code(), Code::invalid_argument);
  EXPECT_EQ(layout->address(0, 1, KvPart::k, 5, 0, 2).code(), Code::invalid_argument);
  EXPECT_EQ(layout->address(0, 1, KvPart::k, 0, 4, 2).code(), Code::invalid_argument);
  EXPECT_EQ(layout->address(0, 1, KvPart::k, 0, 0, 1).code(), Code::invalid_argument);
  const auto latent = make_layout(kLatent, {}, {.page_count = 5});
  EXPECT_EQ(latent->address(0, 0, KvPart::v, 0, 0, 0).code(), Code::invalid_argument);
}

TEST(PageLayout, CompatibleNamesTheDifference) {
  const LayoutOptions options{.page_count = 4};
  const auto base = make_layout(kSmall, {}, options);
  const auto differs = [&](ModelGeometry geometry) {
    const Status status = compatible(*base, *make_layout(geometry, {}, options));
    EXPECT_EQ(status.code(), Code::invalid_argument);
    return std::string_view(status.context());
  };
  ModelGeometry other = kSmall;
  other.layers = 4;
  EXPECT_NE(differs(other).find("layers"), std::string_view::npos);
  other = kSmall;
  other.kv_heads = 8;
  EXPECT_NE(differs(other).find("kv_heads"), std::string_view::npos);
  other = kSmall;
  other.head_dim = 4;
  EXPECT_NE(differs(other).find("head_dim"), std::string_view::npos);
  other = kSmall;
  other.dtype = Dtype::f16;
  EXPECT_NE(differs(other).find("dtype"), std::string_view::npos);
  EXPECT_NE(differs(kLatent).find("MLA"), std::string_view::npos);

  const auto sliced =
      make_layout(kSmall, {.tp_size = 4, .tp_rank = 2, .pp_size = 2, .pp_rank = 1},
                  {.page_tokens = 16, .page_count = 9, .order = PageOrder::page_first});
  EXPECT_TRUE(compatible(*base, *sliced).ok());
  LayoutGroup second = base->groups()[0];
  const auto two = PageLayout::create(3, {}, {base->groups()[0], second});
  EXPECT_NE(std::string_view(compatible(*base, *two).context()).find("groups"),
            std::string_view::npos);
}

TEST(LayoutWire, RoundTrip) {
  for (const LayoutOptions& options : all_options()) {
    for (const ModelGeometry& geometry : {kSmall, kLatent}) {
      const auto layout =
          make_layout(geometry, {.tp_size = 4, .tp_rank = 3, .pp_size = 2, .pp_rank = 1}, options);
      const auto back = PageLayout::decode(layout->encode());
      ASSERT_TRUE(back.ok()) << back.status().to_string();
      EXPECT_EQ(*back, *layout);
    }
  }
}

TEST(LayoutWire, BytesAreAsDocumented) {
  const auto layout = make_layout(kLatent, {.tp_size = 2, .tp_rank = 1},
                                  {.page_tokens = 4, .page_count = 5, .region_offset = 7});
  const std::vector<std::byte> bytes = layout->encode();
  ASSERT_EQ(bytes.size(), 32U + 40U + 3U * 12U);
  const auto u8 = [&](std::size_t at) { return std::to_integer<int>(bytes[at]); };
  EXPECT_EQ(u8(0), 0x4B);
  EXPECT_EQ(u8(1), 0x56);
  EXPECT_EQ(u8(2), 0x50);
  EXPECT_EQ(u8(3), 0x4C);
  EXPECT_EQ(u8(4), 1);         // version
  EXPECT_EQ(u8(6), 1);         // groups
  EXPECT_EQ(u8(8), 108);       // total bytes
  EXPECT_EQ(u8(12), 3);        // model layers
  EXPECT_EQ(u8(16), 2);        // tp_size
  EXPECT_EQ(u8(20), 1);        // tp_rank
  EXPECT_EQ(u8(32 + 4), 3);    // layers
  EXPECT_EQ(u8(32 + 12), 6);   // head_dim
  EXPECT_EQ(u8(32 + 16), 4);   // page_tokens
  EXPECT_EQ(u8(32 + 20), 5);   // page_count
  EXPECT_EQ(u8(32 + 24), 4);   // fp8
  EXPECT_EQ(u8(32 + 26), 1);   // MLA
  EXPECT_EQ(u8(32 + 32), 24);  // page_stride
  EXPECT_EQ(u8(32 + 44), 7);   // offset of the first K tensor
}

TEST(LayoutWire, EveryTruncationIsRefused) {
  const auto layout = make_layout(kSmall, {}, {.page_count = 4});
  std::vector<std::byte> bytes = layout->encode();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_EQ(PageLayout::decode(std::span(bytes).first(size)).code(), Code::corrupt);
  }
  bytes.push_back(std::byte{0});
  EXPECT_EQ(PageLayout::decode(bytes).code(), Code::corrupt);
  bytes.pop_back();
  bytes[4] = std::byte{2};
  EXPECT_EQ(PageLayout::decode(bytes).code(), Code::unsupported);
}

// Whatever decode accepts must be safe to use: no address outside its region, no overlap.
TEST(LayoutWire, MutatedBytesAreRefusedOrSafe) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const auto below = [&](std::uint64_t bound) { return random() % bound; };
  std::size_t accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    const LayoutOptions options{.page_tokens = 2, .page_count = 2};
    std::vector<std::byte> bytes = make_layout(kSmall, {}, options)->encode();
    for (std::uint64_t i = 0; i <= below(3); ++i) {
      std::byte& victim = bytes[below(bytes.size())];
      victim = below(2) == 0 ? static_cast<std::byte>(below(256))
                             : victim ^ static_cast<std::byte>(1U << below(8));
    }
    const auto layout = PageLayout::decode(bytes);
    if (!layout.ok()) continue;
    ++accepted;
    ASSERT_EQ(layout->encode(), bytes);
    const LayoutGroup& g = layout->groups()[0];
    if (layout->page_bytes(0) * g.page_count <= 4096) expect_bytes_disjoint_and_inside(*layout);
    const auto last = layout->address(0, g.layers.end() - 1, KvPart::k, g.page_count - 1,
                                      g.page_tokens - 1, g.heads.end() - 1);
    ASSERT_TRUE(last.ok());
    ASSERT_LE(last->offset + g.head_bytes(), layout->region_bytes(last->region));
  }
  EXPECT_GT(accepted, 0U) << "the mutations should leave some layouts valid";
}

}  // namespace
}  // namespace kvl
