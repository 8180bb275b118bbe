// The property that a plan must have: executed for all rank pairs by a naive mover, every byte of
// the token range arrives exactly once at its place and no other byte changes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "kvl/transfer_plan.h"

namespace kvl {
namespace {

// Content of one byte, and which it should be, from what the byte means.
std::uint8_t content(std::size_t group, std::uint32_t layer, KvPart part, std::uint64_t token,
                     std::uint32_t head, std::uint64_t byte) {
  std::uint64_t x = group;
  for (const std::uint64_t v :
       {std::uint64_t{layer}, static_cast<std::uint64_t>(part), token, std::uint64_t{head}, byte}) {
    x = (x ^ v) * 0x9E3779B97F4A7C15ULL;
    x ^= x >> 29;
  }
  return static_cast<std::uint8_t>(x);
}

constexpr std::uint32_t kNoLayer = 0xFFFFFFFF;

struct Rank {
  PageLayout layout;
  std::vector<std::vector<std::uint8_t>> memory;
  // Destination only: what must be there at the end, how often it was written, whose layer it is.
  std::vector<std::vector<std::uint8_t>> wanted;
  std::vector<std::vector<std::uint8_t>> writes;
  std::vector<std::vector<std::uint8_t>> writes_wanted;
  std::vector<std::vector<std::uint32_t>> layer;
};

struct Case {
  std::vector<ModelGeometry> geometries;  // one per group, same number of layers
  std::vector<LayoutOptions> src_options, dst_options;
  ParallelSizes src_sizes, dst_sizes;
  std::vector<std::vector<std::uint32_t>> src_pages, dst_pages;
  std::vector<std::uint64_t> dst_first;
  std::uint64_t skip = 0, tokens = 0;
  Range layers{0, 0xFFFFFFFF};
  bool by_layer = true;
  bool swap_sides = false;
  // Not 0: tensors lie in no regular order, differently on each rank, some in a region of their
  // own.
  std::uint64_t scatter_seed = 0;
};

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return low + engine_() % (high - low + 1);
  }
  template <typename T>
  T pick(std::vector<T> values) {
    return values[between(0, values.size() - 1)];
  }
  bool flip() { return between(0, 1) == 1; }
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
};

LayoutOptions random_options(Random& random, std::uint64_t tokens, std::uint32_t first_region) {
  LayoutOptions options;
  options.page_tokens = static_cast<std::uint32_t>(random.between(1, 9));
  options.page_count =
      static_cast<std::uint32_t>(tokens / options.page_tokens + 1 + random.between(0, 4));
  options.order = random.flip() ? PageOrder::layer_first : PageOrder::page_first;
  options.kv_joined = random.flip();
  options.token_order = random.flip() ? TokenOrder::nhd : TokenOrder::hnd;
  if (options.order == PageOrder::layer_first) {
    options.regions = random.pick<RegionUse>({RegionUse::one, RegionUse::per_layer});
    if (!options.kv_joined && random.flip()) options.regions = RegionUse::per_tensor;
  }
  options.first_region = first_region;
  options.region_offset = random.between(0, 3) * 16;
  return options;
}

// In order, reversed, shuffled, or mostly in order.
std::vector<std::uint32_t> random_pages(Random& random, std::uint32_t count) {
  std::vector<std::uint32_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0U);
  switch (random.between(0, 3)) {
    case 0:
      break;
    case 1:
      std::reverse(ids.begin(), ids.end());
      break;
    case 2:
      std::shuffle(ids.begin(), ids.end(), random.engine());
      break;
    default:
      std::swap(ids[random.between(0, count - 1)], ids[random.between(0, count - 1)]);
      break;
  }
  return ids;
}

Case random_case(Random& random) {
  Case c;
  c.tokens = random.between(1, 40);
  c.skip = random.flip() ? 0 : random.between(0, c.tokens - 1);
  c.by_layer = random.flip();
  c.swap_sides = random.flip();
  c.scatter_seed = random.between(0, 2) == 0 ? random.engine()() : 0;
  const auto layers = static_cast<std::uint32_t>(random.between(1, 6));
  const auto parallel = [&] {
    return ParallelSizes{random.pick<std::uint32_t>({1, 2, 4, 8}),
                         static_cast<std::uint32_t>(random.between(1, std::min(layers, 3U)))};
  };
  c.src_sizes = parallel();
  c.dst_sizes = parallel();
  if (random.between(0, 3) == 0) {
    c.layers.first = static_cast<std::uint32_t>(random.between(0, layers - 1));
    c.layers.count = static_cast<std::uint32_t>(random.between(1, layers));
  }
  const std::uint64_t groups = random.between(1, 2);
  for (std::uint32_t group = 0; group < groups; ++group) {
    ModelGeometry geometry;
    geometry.layers = layers;
    geometry.mla = random.between(0, 3) == 0;
    geometry.kv_heads = geometry.mla ? 1 : random.pick<std::uint32_t>({1, 2, 4, 8});
    geometry.head_dim = static_cast<std::uint32_t>(random.between(1, 3));
    geometry.dtype = random.pick<Dtype>({Dtype::fp8, Dtype::bf16, Dtype::f32});
    c.geometries.push_back(geometry);
    c.src_options.push_back(random_options(random, c.tokens, group * 32));
    c.dst_options.push_back(random_options(random, c.tokens, group * 32));
    c.src_pages.push_back(random_pages(random, c.src_options.back().page_count));
    c.dst_pages.push_back(random_pages(random, c.dst_options.back().page_count));
    // Sometimes the receiver lists only the pages from the first token to move on.
    const std::uint32_t page_tokens = c.dst_options.back().page_tokens;
    c.dst_first.push_back(random.flip() ? 0 : c.skip / page_tokens * page_tokens);
  }
  return c;
}

// Any permutation of the places of equal tensors is a layout too.
void scatter(LayoutGroup& group, Random& random) {
  std::vector<TensorPlace> places = group.k;
  places.insert(places.end(), group.v.begin(), group.v.end());
  std::shuffle(places.begin(), places.end(), random.engine());
  for (TensorPlace& place : places) {
    if (random.between(0, 3) == 0) place.region += 64;
  }
  const auto v = places.begin() + static_cast<std::ptrdiff_t>(group.k.size());
  std::copy(places.begin(), v, group.k.begin());
  std::copy(v, places.end(), group.v.begin());
}

PageLayout layout_of(const Case& c, const std::vector<LayoutOptions>& options,
                     const ParallelSlice& slice) {
  Random random(c.scatter_seed + flat_rank(slice));
  std::vector<LayoutGroup> groups;
  for (std::size_t i = 0; i < options.size(); ++i) {
    const auto one = make_layout(c.geometries[i], slice, options[i]);
    EXPECT_TRUE(one.ok()) << one.status().to_string();
    groups.push_back(one->groups()[0]);
    if (c.scatter_seed != 0) scatter(groups.back(), random);
  }
  return *PageLayout::create(c.geometries[0].layers, slice, std::move(groups));
}

// Calls f(region, offset of a byte, its content, layer) for each byte of tokens [first, end).
template <typename F>
void each_byte(const PageLayout& layout, const std::vector<std::vector<std::uint32_t>>& pages,
               const std::vector<std::uint64_t>& first_tokens, std::uint64_t first,
               std::uint64_t end, F f) {
  for (std::size_t group = 0; group < layout.groups().size(); ++group) {
    const LayoutGroup& g = layout.groups()[group];
    for (std::uint32_t layer = g.layers.first; layer < g.layers.end(); ++layer) {
      for (const KvPart part : {KvPart::k, KvPart::v}) {
        if (g.mla && part == KvPart::v) continue;
        for (std::uint64_t token = first; token < end; ++token) {
          const std::uint64_t at = token - first_tokens[group];
          for (std::uint32_t head = g.heads.first; head < g.heads.end(); ++head) {
            const auto address =
                layout.address(group, layer, part, pages[group][at / g.page_tokens],
                               static_cast<std::uint32_t>(at % g.page_tokens), head);
            ASSERT_TRUE(address.ok());
            for (std::uint64_t byte = 0; byte < g.head_bytes(); ++byte) {
              f(address->region, address->offset + byte,
                content(group, layer, part, token, head, byte), layer);
            }
          }
        }
      }
    }
  }
}

template <typename T>
std::vector<std::vector<T>> arena(const PageLayout& layout, T value) {
  std::vector<std::vector<T>> regions(layout.region_count());
  for (std::uint32_t i = 0; i < layout.region_count(); ++i) {
    regions[i].assign(layout.region_bytes(i), value);
  }
  return regions;
}

std::vector<Rank> make_sources(const Case& c) {
  std::vector<Rank> ranks;
  const std::vector<std::uint64_t> zero(c.geometries.size(), 0);
  for (std::uint32_t i = 0; i < c.src_sizes.tp_size * c.src_sizes.pp_size; ++i) {
    Rank rank;
    rank.layout =
        layout_of(c, c.src_options, slice_at(c.src_sizes.tp_size, c.src_sizes.pp_size, i));
    rank.memory = arena<std::uint8_t>(rank.layout, 0xAA);
    each_byte(rank.layout, c.src_pages, zero, 0, c.tokens,
              [&](std::uint32_t region, std::uint64_t offset, std::uint8_t value, std::uint32_t) {
                rank.memory[region][offset] = value;
              });
    ranks.push_back(std::move(rank));
  }
  return ranks;
}

std::vector<Rank> make_destinations(const Case& c) {
  std::vector<Rank> ranks;
  for (std::uint32_t i = 0; i < c.dst_sizes.tp_size * c.dst_sizes.pp_size; ++i) {
    Rank rank;
    rank.layout =
        layout_of(c, c.dst_options, slice_at(c.dst_sizes.tp_size, c.dst_sizes.pp_size, i));
    rank.memory = arena<std::uint8_t>(rank.layout, 0xBB);
    rank.wanted = rank.memory;
    rank.writes = arena<std::uint8_t>(rank.layout, 0);
    rank.writes_wanted = rank.writes;
    rank.layer = arena<std::uint32_t>(rank.layout, kNoLayer);
    each_byte(
        rank.layout, c.dst_pages, c.dst_first, c.skip, c.tokens,
        [&](std::uint32_t region, std::uint64_t offset, std::uint8_t value, std::uint32_t layer) {
          rank.layer[region][offset] = layer;
          if (layer < c.layers.first || layer - c.layers.first >= c.layers.count) return;
          rank.wanted[region][offset] = value;
          rank.writes_wanted[region][offset] = 1;
        });
    ranks.push_back(std::move(rank));
  }
  return ranks;
}

void execute(const PageOp& op, bool swapped, std::uint32_t layer, const Rank& src, Rank& dst) {
  for (std::uint64_t piece = 0; piece < op.count; ++piece) {
    const std::uint64_t local = op.local_offset + piece * op.local_stride;
    const std::uint64_t remote = op.remote_offset + piece * op.remote_stride;
    const auto& from = src.memory[swapped ? op.remote_region : op.local_region];
    const std::uint32_t to = swapped ? op.local_region : op.remote_region;
    for (std::uint64_t i = 0; i < op.bytes; ++i) {
      const std::uint64_t at = (swapped ? local : remote) + i;
      dst.memory[to].at(at) = from.at((swapped ? remote : local) + i);
      ++dst.writes[to][at];
      if (layer != kNoLayer) {
        ASSERT_EQ(dst.layer[to][at], layer);
      }
    }
  }
}

void run_case(const Case& c) {
  const std::vector<Rank> sources = make_sources(c);
  std::vector<Rank> destinations = make_destinations(c);
  std::vector<GroupPages> pages(c.geometries.size());
  for (std::size_t i = 0; i < pages.size(); ++i) {
    pages[i] = {.src = c.src_pages[i], .dst = c.dst_pages[i], .dst_first_token = c.dst_first[i]};
  }
  const PlanRequest request{.groups = pages,
                            .skip_tokens = c.skip,
                            .tokens = c.tokens,
                            .layers = c.layers,
                            .by_layer = c.by_layer,
                            .swap_sides = c.swap_sides};
  std::vector<RankPair> moving;
  TransferPlan plan;  // shared by all pairs, so reuse is tested too
  for (std::uint32_t s = 0; s < sources.size(); ++s) {
    for (std::uint32_t d = 0; d < destinations.size(); ++d) {
      const Status status = plan_transfer(sources[s].layout, destinations[d].layout, request, plan);
      ASSERT_TRUE(status.ok()) << status.to_string();
      if (moves(sources[s].layout, destinations[d].layout)) {
        moving.push_back({s, d});
      } else {
        ASSERT_TRUE(plan.ops.empty());
      }
      std::uint64_t bytes = 0;
      std::size_t listed = 0;
      for (std::uint32_t i = 0; i < plan.layer_count(); ++i) {
        for (const PageOp& op : plan.layer_ops(i)) {
          execute(op, c.swap_sides, c.by_layer ? plan.first_layer + i : kNoLayer, sources[s],
                  destinations[d]);
          bytes += op.total_bytes();
          ++listed;
        }
      }
      ASSERT_EQ(bytes, plan.bytes);
      ASSERT_EQ(listed, plan.ops.size());
    }
  }
  for (const Rank& rank : destinations) {
    ASSERT_EQ(rank.writes, rank.writes_wanted) << "each byte exactly once";
    ASSERT_EQ(rank.memory, rank.wanted);
  }
  if (c.geometries.size() == 1) {
    ASSERT_EQ(*rank_pairs(c.geometries[0], c.src_sizes, c.dst_sizes), moving);
  }
}

TEST(PlanProperty, EveryByteOnceAndNoOther) {
  const std::uint64_t first = std::random_device{}();
  for (std::uint64_t i = 0; i < 1500; ++i) {
    const std::uint64_t seed = first + i;
    SCOPED_TRACE(seed);
    Random random(seed);
    run_case(random_case(random));
    if (::testing::Test::HasFatalFailure()) {
      ADD_FAILURE() << "seed " << seed;
      return;
    }
  }
}

// Page ids and token counts may come from a peer: whatever is accepted stays inside the regions.
TEST(PlanProperty, HostileRequestsAreRefusedOrInside) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  Random random(seed);
  const auto number = [&](std::uint64_t usual) -> std::uint64_t {
    switch (random.between(0, 31)) {
      case 0:
        return ~std::uint64_t{0} - random.between(0, 2);
      case 1:
        return random.engine()();
      default:
        return random.between(0, usual);
    }
  };
  std::size_t accepted = 0;
  TransferPlan plan;
  for (int round = 0; round < 5000; ++round) {
    Case c = random_case(random);
    const auto ids = [&](const LayoutOptions& options) {
      std::vector<std::uint32_t> list;
      for (std::uint64_t i = random.between(1, 8); i > 0; --i) {
        const bool wrong = random.between(0, 15) == 0;
        list.push_back(static_cast<std::uint32_t>(
            wrong ? number(options.page_count) : random.between(0, options.page_count - 1)));
      }
      return list;
    };
    std::vector<GroupPages> pages(c.geometries.size());
    for (std::size_t i = 0; i < pages.size(); ++i) {
      c.src_pages[i] = ids(c.src_options[i]);
      c.dst_pages[i] = ids(c.dst_options[i]);
      pages[i] = {.src = c.src_pages[i],
                  .dst = c.dst_pages[i],
                  .src_first_token = random.between(0, 3) > 0 ? 0 : number(9),
                  .dst_first_token = random.between(0, 3) > 0 ? 0 : number(9)};
    }
    const PageLayout src =
        layout_of(c, c.src_options, {.tp_size = c.src_sizes.tp_size, .tp_rank = 0});
    const PageLayout dst =
        layout_of(c, c.dst_options, {.tp_size = c.dst_sizes.tp_size, .tp_rank = 0});
    const PlanRequest request{
        .groups = pages,
        .skip_tokens = number(3),
        .tokens = number(12),
        .layers = {static_cast<std::uint32_t>(number(4)), static_cast<std::uint32_t>(number(6))},
        .by_layer = c.by_layer};
    if (!plan_transfer(src, dst, request, plan).ok()) continue;
    accepted += plan.ops.empty() ? 0 : 1;
    for (const PageOp& op : plan.ops) {
      ASSERT_LE(op.local_offset + (op.count - 1) * op.local_stride + op.bytes,
                src.region_bytes(op.local_region));
      ASSERT_LE(op.remote_offset + (op.count - 1) * op.remote_stride + op.bytes,
                dst.region_bytes(op.remote_region));
    }
  }
  EXPECT_GT(accepted, 50U) << "of 5000";
}

}  // namespace
}  // namespace kvl
