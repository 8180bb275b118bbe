// KV without arithmetic: the same content in every layout, and every byte counts.
#include "worker/kv_only.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>

#include "kvl/transfer_plan.h"
#include "worker/model_config.h"

namespace kvl::worker::test {
namespace {

struct Cache {
  Cache(const ModelGeometry& geometry, const ParallelSlice& slice, const LayoutOptions& options)
      : layout(*make_layout(geometry, slice, options)), memory(layout.region_bytes(0)) {}
  PagedKv kv() { return *PagedKv::create(layout, {std::span<std::byte>(memory)}); }
  PageLayout layout;
  std::vector<std::byte> memory;
};

KvRange range_of(std::uint32_t tokens, std::uint32_t page_tokens) {
  KvRange range{.content = content_of_ids(std::vector<std::uint64_t>{3, 1, 4, 1, 5}, 50),
                .pages = std::vector<std::uint32_t>((tokens + page_tokens - 1) / page_tokens),
                .end_token = tokens};
  std::iota(range.pages.rbegin(), range.pages.rend(), 1U);  // in reverse, from page 1 on
  return range;
}

void fill(const PagedKv& kv, const KvRange& range) {
  const Range layers = kv.group().layers;
  for (std::uint32_t l = layers.first; l < layers.end(); ++l) fill_layer(kv, range, l);
}

TEST(KvOnly, EveryByteOfEverySliceIsChecked) {
  const ModelGeometry geometry{.layers = 3, .kv_heads = 4, .head_dim = 6};  // 12 bytes a vector
  for (const TokenOrder order : {TokenOrder::nhd, TokenOrder::hnd}) {
    const LayoutOptions options{.page_tokens = 7, .page_count = 8, .token_order = order};
    const KvRange range = range_of(45, 7);
    Cache cache(geometry, {.tp_size = 2, .tp_rank = 1}, options);
    const PagedKv kv = cache.kv();
    ASSERT_TRUE(check(kv, range).ok());
    fill(kv, range);
    EXPECT_TRUE(wrong_pages(kv, range).empty());
    std::uint64_t noticed = 0;
    for (std::byte& byte : cache.memory) {
      byte ^= std::byte{1};
      noticed += wrong_pages(kv, range).size();
      byte ^= std::byte{1};
    }
    EXPECT_EQ(noticed, 45U * 3 * 2 * 2 * 12);  // every byte of the range, and no other
  }
}

TEST(KvOnly, ContentDoesNotDependOnTheLayout) {
  const ModelGeometry geometry{.layers = 4, .kv_heads = 4, .head_dim = 8};
  const ParallelSizes sizes[] = {{1, 1}, {2, 2}};
  std::vector<std::vector<std::byte>> vectors;
  for (const ParallelSizes& size : sizes) {
    const std::uint32_t page_tokens = size.tp_size == 1 ? 16 : 24;
    const KvRange range = range_of(100, page_tokens);
    std::vector<std::byte> all;
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
      for (std::uint32_t head = 0; head < 4; ++head) {
        const ParallelSlice slice{size.tp_size, head * size.tp_size / 4, size.pp_size,
                                  layer * size.pp_size / 4};
        Cache cache(geometry, slice, {.page_tokens = page_tokens, .page_count = 8});
        const PagedKv kv = cache.kv();
        fill(kv, range);
        for (std::uint32_t token = 0; token < 100; ++token) {
          const std::byte* const at =
              kv.at(layer, KvPart::v, range.pages[token / page_tokens], head) +
              token % page_tokens * kv.token_stride();
          all.insert(all.end(), at, at + 16);
        }
      }
    }
    vectors.push_back(std::move(all));
  }
  EXPECT_EQ(vectors[0], vectors[1]);
}

TEST(KvOnly, ContentFollowsThePrefix) {
  const auto chain = [](std::vector<std::uint64_t> ids) { return content_of_ids(ids, 32); };
  const auto keys = [&](std::vector<std::uint64_t> ids) { return page_keys(chain(ids), 64, 16); };
  EXPECT_EQ(keys({1, 2}), keys({1, 2}));
  EXPECT_EQ(keys({1, 2})[1], keys({1, 3})[1]);
  EXPECT_NE(keys({1, 2})[2], keys({1, 3})[2]);
  EXPECT_NE(keys({1, 2})[2], keys({9, 2})[2]);
  EXPECT_NE(keys({1, 2})[0], keys({1, 2})[1]);
  EXPECT_EQ(page_keys(chain({1, 2}), 47, 16).size(), 2U);
  const std::vector<std::int32_t> tokens(40, 7);
  EXPECT_EQ(content_of_tokens(tokens).chain.size(), 3U);
  EXPECT_NE(pseudo_token(chain({1}), 0) * 1000 + pseudo_token(chain({1}), 1),
            pseudo_token(chain({2}), 0) * 1000 + pseudo_token(chain({2}), 1));
}

TEST(KvOnly, RangesThatDoNotFitAreRefused) {
  Cache cache({.layers = 1, .kv_heads = 1, .head_dim = 8}, {},
              {.page_tokens = 16, .page_count = 8});
  const auto code = [&](auto change) {
    KvRange range = range_of(40, 16);
    change(range);
    return check(cache.kv(), range).code();
  };
  EXPECT_EQ(code([](KvRange&) {}), Code::ok);
  EXPECT_EQ(code([](KvRange& r) { r.end_token = 49; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvRange& r) { r.first_token = 40; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvRange& r) { r.pages[1] = 8; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvRange& r) { r.content.chain.clear(); }), Code::invalid_argument);
  EXPECT_EQ(code([](KvRange& r) { r.content.block_tokens = 0; }), Code::invalid_argument);
}

// Not a bound (the machine is shared): printed, so that a regression can be seen.
TEST(KvOnly, Speed) {
  Cache cache(find_model("tiny")->kv, {}, {.page_tokens = 64, .page_count = 80});
  const PagedKv kv = cache.kv();
  KvRange range{.content = content_of_ids(std::vector<std::uint64_t>(10, 1), 512),
                .pages = std::vector<std::uint32_t>(80),
                .end_token = 5120};
  std::iota(range.pages.begin(), range.pages.end(), 0U);
  fill(kv, range);
  const auto rate = [&](auto&& work) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 10; ++i) work();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    return 10 * static_cast<double>(cache.memory.size()) / took.count() / 1e9;
  };
  std::printf("fill %.1f GB/s\n", rate([&] { fill(kv, range); }));
  std::printf("verify %.1f GB/s\n", rate([&] { EXPECT_TRUE(wrong_pages(kv, range).empty()); }));
}

}  // namespace
}  // namespace kvl::worker::test
