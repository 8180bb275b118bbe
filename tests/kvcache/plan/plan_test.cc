// transfer_plan: what a plan costs in ops for the layouts that matter, who sends, and refusals.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "kvl/transfer_plan.h"

namespace kvl {
namespace {

constexpr ModelGeometry k70b{.layers = 80, .kv_heads = 8, .head_dim = 128};

std::vector<std::uint32_t> ascending(std::uint32_t count) {
  std::vector<std::uint32_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0U);
  return ids;
}

// No two neighbours are contiguous and no two steps are equal or upward: nothing to merge.
std::vector<std::uint32_t> scattered(std::uint32_t count) {
  std::vector<std::uint32_t> ids;
  for (std::uint32_t i = 0; i < count; ++i) ids.push_back((count - i) * 2);
  return ids;
}

struct Pages {
  std::vector<std::uint32_t> src, dst;
};

TransferPlan plan(const PageLayout& src, const PageLayout& dst, const Pages& pages,
                  std::uint64_t tokens, bool by_layer = true) {
  const GroupPages group{.src = pages.src, .dst = pages.dst};
  TransferPlan out;
  const Status status =
      plan_transfer(src, dst, {.groups = {&group, 1}, .tokens = tokens, .by_layer = by_layer}, out);
  EXPECT_TRUE(status.ok()) << status.to_string();
  return out;
}

TEST(PlanOps, HeadSlicesAreOneRunPerPageAndTensor) {
  // One head of one rank into four of another: 256-byte pieces, a page of them one op.
  const auto src = make_layout(k70b, {.tp_size = 8, .tp_rank = 5}, {.page_count = 2000});
  const auto dst = make_layout(k70b, {.tp_size = 2, .tp_rank = 1}, {.page_count = 2000});
  const TransferPlan p = plan(*src, *dst, {scattered(512), scattered(512)}, 32768);
  ASSERT_EQ(p.ops.size(), 512U * 80 * 2);
  EXPECT_EQ(p.layer_count(), 80U);
  EXPECT_EQ(p.bytes, 327680U / 8 * 32768);
  for (const PageOp& op : p.ops) {
    ASSERT_EQ(op.bytes, 256U);
    ASSERT_EQ(op.count, 64U);
    ASSERT_EQ(op.local_stride, 256U);
    ASSERT_EQ(op.remote_stride, 1024U);
  }
}

TEST(PlanOps, HeadSlicesOfContiguousPagesAreOneRunPerTensor) {
  const auto src = make_layout(k70b, {.tp_size = 8, .tp_rank = 5}, {.page_count = 600});
  const auto dst = make_layout(k70b, {.tp_size = 2, .tp_rank = 1}, {.page_count = 600});
  const TransferPlan p = plan(*src, *dst, {ascending(512), ascending(512)}, 32768);
  ASSERT_EQ(p.ops.size(), 160U);
  EXPECT_EQ(p.ops[0].count, 32768U);
}

TEST(PlanOps, EqualPageFirstPagesAreOneRunEach) {
  const LayoutOptions options{.page_count = 600, .order = PageOrder::page_first, .kv_joined = true};
  const auto layout = make_layout(k70b, {}, options);
  TransferPlan p = plan(*layout, *layout, {scattered(128), scattered(128)}, 128 * 64, false);
  ASSERT_EQ(p.ops.size(), 128U);
  EXPECT_EQ(p.ops[0].bytes, layout->page_bytes(0));
  EXPECT_EQ(p.layer_count(), 1U);
  // Layer by layer it is one run per page and layer, K and V together.
  p = plan(*layout, *layout, {scattered(128), scattered(128)}, 128 * 64);
  ASSERT_EQ(p.ops.size(), 128U * 80);
  EXPECT_EQ(p.ops[0].bytes, 2U * 64 * 8 * 256);
  // Contiguous pages: pieces of a page, all pages one op.
  p = plan(*layout, *layout, {ascending(128), ascending(128)}, 128 * 64);
  EXPECT_EQ(p.ops.size(), 80U);
  p = plan(*layout, *layout, {ascending(128), ascending(128)}, 128 * 64, false);
  EXPECT_EQ(p.ops.size(), 1U);
}

TEST(PlanOps, KAndVOfALayerShareARunWhenPagesAreScattered) {
  const auto layout = make_layout(k70b, {}, {.page_count = 600});
  const TransferPlan p = plan(*layout, *layout, {scattered(128), scattered(128)}, 128 * 64);
  ASSERT_EQ(p.ops.size(), 128U * 80);
  EXPECT_EQ(p.ops[0].count, 2U);
}

TEST(PlanOps, LatentMovesOnceToEachReceiver) {
  const ModelGeometry mla = *find_geometry("deepseek-v3");
  const Pages pages{ascending(16), ascending(16)};
  std::uint64_t bytes = 0;
  for (std::uint32_t s = 0; s < 8; ++s) {
    for (std::uint32_t d = 0; d < 2; ++d) {
      const auto src = make_layout(mla, {.tp_size = 8, .tp_rank = s}, {.page_count = 16});
      const auto dst = make_layout(mla, {.tp_size = 2, .tp_rank = d}, {.page_count = 16});
      bytes += plan(*src, *dst, pages, 1024).bytes;
    }
  }
  EXPECT_EQ(bytes, 2U * 70272 * 1024);
}

TEST(PlanOps, SkippedTokensDoNotMove) {
  const auto layout = make_layout(k70b, {}, {.page_count = 16});
  const std::vector<std::uint32_t> ids = ascending(16);
  const std::vector<std::uint32_t> tail = {15};
  const GroupPages whole{.src = ids, .dst = ids};
  const GroupPages listed{.src = ids, .dst = tail, .dst_first_token = 960};
  for (const GroupPages& group : {whole, listed}) {
    TransferPlan p;
    ASSERT_TRUE(plan_transfer(*layout, *layout,
                              {.groups = {&group, 1}, .skip_tokens = 1000, .tokens = 1024}, p)
                    .ok());
    EXPECT_EQ(p.bytes, 24 * k70b.bytes_per_token());
  }
}

TEST(PlanOps, SwapSidesExchangesLocalAndRemote) {
  const auto src = make_layout(k70b, {.tp_size = 4}, {.page_count = 16});
  const auto dst = make_layout(k70b, {}, {.page_tokens = 16, .page_count = 64, .first_region = 3});
  const std::vector<std::uint32_t> from = scattered(7);
  const std::vector<std::uint32_t> to = scattered(28);
  const GroupPages group{.src = from, .dst = to};
  TransferPlan push;
  TransferPlan pull;
  ASSERT_TRUE(plan_transfer(*src, *dst, {.groups = {&group, 1}, .tokens = 448}, push).ok());
  ASSERT_TRUE(
      plan_transfer(*src, *dst, {.groups = {&group, 1}, .tokens = 448, .swap_sides = true}, pull)
          .ok());
  ASSERT_EQ(push.ops.size(), pull.ops.size());
  for (std::size_t i = 0; i < push.ops.size(); ++i) {
    PageOp op = pull.ops[i];
    std::swap(op.local_region, op.remote_region);
    std::swap(op.local_offset, op.remote_offset);
    std::swap(op.local_stride, op.remote_stride);
    ASSERT_EQ(op, push.ops[i]);
  }
}

TEST(PlanRanks, PairsOfUnequalSlices) {
  const auto count = [](const ModelGeometry& g, ParallelSizes src, ParallelSizes dst) {
    return rank_pairs(g, src, dst)->size();
  };
  EXPECT_EQ(count(k70b, {8, 1}, {2, 1}), 8U);
  EXPECT_EQ(count(k70b, {2, 1}, {8, 1}), 8U);
  EXPECT_EQ(count(k70b, {4, 2}, {4, 1}), 8U);
  EXPECT_EQ(count(k70b, {16, 1}, {1, 1}), 8U) << "one replica of each head sends";
  EXPECT_EQ(count(k70b, {1, 1}, {16, 1}), 16U);
  EXPECT_EQ(count(*find_geometry("deepseek-v3"), {8, 1}, {8, 1}), 8U);
  EXPECT_EQ(count(*find_geometry("deepseek-v3"), {8, 2}, {4, 3}), 4U * 4);
  EXPECT_EQ(rank_pairs(k70b, {3, 1}, {1, 1}).code(), Code::invalid_argument);
  EXPECT_EQ(rank_pairs(k70b, {0, 1}, {1, 1}).code(), Code::invalid_argument);
  EXPECT_EQ(rank_pairs(k70b, {4096, 4096}, {1, 1}).code(), Code::invalid_argument);
}

TEST(PlanRanks, ReplicasShareTheReceivers) {
  for (const std::uint32_t senders : {1U, 2U, 4U, 8U, 16U}) {
    for (const std::uint32_t receivers : {1U, 2U, 4U, 8U, 16U}) {
      std::map<std::uint32_t, std::uint32_t> load;
      for (std::uint32_t d = 0; d < receivers; ++d) {
        std::uint32_t sources = 0;
        for (std::uint32_t s = 0; s < senders; ++s) {
          if (!sends(1, {.tp_size = senders, .tp_rank = s}, {.tp_size = receivers, .tp_rank = d})) {
            continue;
          }
          ++sources;
          ++load[s];
        }
        EXPECT_EQ(sources, 1U);
      }
      EXPECT_EQ(load.size(), std::min(senders, receivers));
      for (const auto& [rank, served] : load) {
        EXPECT_EQ(served, std::max(1U, receivers / senders)) << rank;
      }
    }
  }
}

// Both sides compute it, so the rule is part of the protocol.
TEST(PlanRanks, NeighboursServeNeighbours) {
  const auto sender = [](std::uint32_t kv_heads, std::uint32_t senders, std::uint32_t receivers,
                         std::uint32_t receiver) {
    for (std::uint32_t s = 0; s < senders; ++s) {
      if (sends(kv_heads, {.tp_size = senders, .tp_rank = s},
                {.tp_size = receivers, .tp_rank = receiver})) {
        return s;
      }
    }
    return senders;
  };
  for (std::uint32_t d = 0; d < 4; ++d) {
    EXPECT_EQ(sender(1, 2, 4, d), d / 2);
    EXPECT_EQ(sender(1, 8, 4, d), d * 2);
    EXPECT_EQ(sender(2, 8, 4, d), d * 2);
  }
}

class PlanRefusals : public ::testing::Test {
 protected:
  Code code(const std::vector<std::uint32_t>& src, const std::vector<std::uint32_t>& dst,
            std::uint64_t skip, std::uint64_t tokens, std::uint64_t dst_first = 0,
            std::uint64_t ops_max = 1000000) {
    const GroupPages group{.src = src, .dst = dst, .dst_first_token = dst_first};
    const Status status = plan_transfer(
        *layout_, *layout_,
        {.groups = {&group, 1}, .skip_tokens = skip, .tokens = tokens, .ops_max = ops_max}, plan_);
    if (!status.ok()) {
      EXPECT_TRUE(plan_.ops.empty());
      EXPECT_TRUE(plan_.layer_begin.empty());
      EXPECT_EQ(plan_.bytes, 0U);
    }
    return status.code();
  }

  Result<PageLayout> layout_ = make_layout(k70b, {}, {.page_count = 10});
  TransferPlan plan_;
};

TEST_F(PlanRefusals, EachWrongInputHasItsAnswer) {
  const std::vector<std::uint32_t> two = {3, 4};
  EXPECT_EQ(code(two, two, 0, 128), Code::ok);
  EXPECT_EQ(code(two, two, 0, 0), Code::invalid_argument);
  EXPECT_EQ(code(two, two, 128, 128), Code::invalid_argument);
  EXPECT_EQ(code(two, two, 0, 129), Code::invalid_argument) << "lists too short";
  EXPECT_EQ(code(two, two, 0, ~std::uint64_t{0}), Code::invalid_argument);
  EXPECT_EQ(code(two, {}, 0, 128), Code::invalid_argument);
  EXPECT_EQ(code({3, 10}, two, 0, 128), Code::invalid_argument) << "source id out of range";
  EXPECT_EQ(code(two, {3, 0xFFFFFFFF}, 0, 128), Code::invalid_argument);
  EXPECT_EQ(code(two, {3, 3}, 0, 128), Code::invalid_argument) << "destination twice";
  EXPECT_EQ(code({1, 2, 3}, {5, 4, 5}, 0, 192), Code::invalid_argument);
  EXPECT_EQ(code({3, 3}, two, 0, 128), Code::ok) << "a source may be read twice";
  EXPECT_EQ(code(two, {3, 3}, 64, 128), Code::ok) << "the prefix is not written";
  EXPECT_EQ(code(two, two, 64, 128, 63), Code::invalid_argument) << "not a page boundary";
  EXPECT_EQ(code(two, two, 0, 128, 64), Code::invalid_argument) << "list begins too late";
  EXPECT_EQ(code(two, two, 0, 128, 0, 10), Code::exhausted);
}

TEST_F(PlanRefusals, LayoutsThatDoNotMatch) {
  const auto other = make_layout(*find_geometry("llama-3.1-8b"), {}, {.page_count = 10});
  const std::vector<std::uint32_t> ids = {1};
  const GroupPages group{.src = ids, .dst = ids};
  EXPECT_EQ(plan_transfer(*layout_, *other, {.groups = {&group, 1}, .tokens = 10}, plan_).code(),
            Code::invalid_argument);
  EXPECT_EQ(plan_transfer(*layout_, *layout_, {.tokens = 10}, plan_).code(),
            Code::invalid_argument);
}

}  // namespace
}  // namespace kvl
