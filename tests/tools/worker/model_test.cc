// The transformer over paged KV: the same bits for every layout, and KV that matters.
#include <cmath>
#include <set>

#include "tests/tools/worker/model_rig.h"

namespace kvl::worker::test {
namespace {

const std::vector<std::int32_t>& prompt() {
  static const std::vector<std::int32_t> tokens =
      encode_text("A page of keys and values left one machine and reached another.");
  return tokens;
}

TEST(Model, EveryParallelLayoutGivesTheSameBits) {
  const Output expected = Rig({}).generate(prompt(), 6);
  for (const std::uint32_t tp : {1U, 2U, 4U, 8U}) {
    for (const std::uint32_t pp : {1U, 2U, 3U}) {
      EXPECT_EQ(Rig({.tp = tp, .pp = pp}).generate(prompt(), 6), expected)
          << "tp " << tp << " pp " << pp;
    }
  }
}

TEST(Model, TiedHeadAndBf16CacheToo) {
  const Output expected = Rig({.dtype = Dtype::bf16}, "tiny").generate(prompt(), 4);
  EXPECT_EQ(Rig({.tp = 4, .pp = 2, .dtype = Dtype::bf16}, "tiny").generate(prompt(), 4), expected);
  EXPECT_NE(Rig({.dtype = Dtype::f32}, "tiny").generate(prompt(), 4), expected);
}

TEST(Model, PagedEqualsContiguousInEveryPageLayout) {
  const Output contiguous =
      Rig({.layout = {.page_tokens = 256, .page_count = 1}, .pages_seed = 0}).generate(prompt(), 6);
  for (const PageOrder order : {PageOrder::layer_first, PageOrder::page_first}) {
    for (const TokenOrder tokens : {TokenOrder::nhd, TokenOrder::hnd}) {
      for (const bool joined : {false, true}) {
        const LayoutOptions layout{.page_tokens = 7,
                                   .page_count = 20,
                                   .order = order,
                                   .kv_joined = joined,
                                   .token_order = tokens};
        EXPECT_EQ(Rig({.layout = layout, .pages_seed = 3}).generate(prompt(), 6), contiguous);
      }
    }
  }
  const LayoutOptions regions{.page_count = 4, .regions = RegionUse::per_tensor};
  EXPECT_EQ(Rig({.layout = regions}).generate(prompt(), 6), contiguous);
}

TEST(Model, ChunksAndReusedPrefixChangeNothing) {
  const Output expected = Rig({}).generate(prompt(), 6);
  for (const std::size_t chunk : {1U, 5U, 16U, 63U}) {
    EXPECT_EQ(Rig({.tp = 2}).generate(prompt(), 6, chunk), expected) << "chunk " << chunk;
  }
  Rig rig({.pp = 2});
  rig.prefill(prompt(), 0, 100);
  const std::vector<float> logits = rig.prefill(prompt(), 32, 100);  // two pages are there already
  EXPECT_EQ(rig.decode(prompt(), logits, 6), expected);
}

TEST(Model, SequencesOfOneBatchDoNotTouchEachOther) {
  Rig rig({.tp = 2, .layout = {.page_tokens = 16, .page_count = 32}});
  const std::vector<std::uint32_t>& pages = rig.pages();
  const std::vector<std::uint32_t> front(pages.begin(), pages.begin() + 16);
  const std::vector<std::uint32_t> back(pages.begin() + 16, pages.end());
  const std::vector<std::int32_t> other = encode_text("something else");
  Logits both;
  ASSERT_EQ(rig.forward({{other, 0, front, true}, {prompt(), 0, back, true}}, both), Code::ok);
  EXPECT_EQ(both[0], Rig({}).prefill(other, 0, 100));
  EXPECT_EQ(both[1], Rig({}).prefill(prompt(), 0, 100));
}

// The control: were KV not read, everything above would hold as well.
TEST(Model, OneFlippedByteOfKvChangesTheLogits) {
  for (const KvPart part : {KvPart::k, KvPart::v}) {
    for (const std::uint32_t layer : {0U, 7U}) {
      Rig rig({.tp = 2});
      const std::vector<float> before = rig.prefill(prompt(), 0, 100);
      // Token 3 of the first page, head 2: held by rank 1. Byte 2 holds high bits of the fraction.
      std::byte* const element =
          rig.caches()[1].at(layer, part, rig.pages()[0], 2) + 3 * rig.caches()[1].token_stride();
      EXPECT_EQ(rig.prefill(prompt(), prompt().size() - 1, 1), before);
      element[2] ^= std::byte{0x40};
      EXPECT_NE(rig.prefill(prompt(), prompt().size() - 1, 1), before);
    }
  }
}

TEST(Model, OutputsAreNotDegenerate) {
  const Output output = Rig({}).generate(prompt(), 32);
  EXPECT_GT(std::set(output.tokens.begin(), output.tokens.end()).size(), 4U);
  EXPECT_NE(Rig({.weights_seed = 8}).generate(prompt(), 1), Rig({}).generate(prompt(), 1));
  for (const float logit : output.logits.back()) EXPECT_TRUE(std::isfinite(logit));
}

TEST(Model, WrongBatchesAreRefusedByAllRanks) {
  Rig rig({.tp = 2, .pp = 2});
  Logits logits;
  const auto code = [&](const Segment& segment) { return rig.forward({segment}, logits); };
  EXPECT_EQ(code({{}, 0, {0}, true}), Code::invalid_argument);
  EXPECT_EQ(code({{1}, 16, {0}, true}), Code::invalid_argument);
  EXPECT_EQ(code({{1}, 0, {16}, true}), Code::invalid_argument);
  EXPECT_EQ(code({{258}, 0, {0}, true}), Code::invalid_argument);
  EXPECT_EQ(code({{-1}, 0, {0}, true}), Code::invalid_argument);
  EXPECT_EQ(code({{1}, 0, {0}, true}), Code::ok);
}

TEST(Model, EachLayerHeldIsAnnouncedOnce) {
  Rig rig({.tp = 2, .pp = 2});
  Logits logits;
  const Segment segment{.tokens = {1, 2}, .pages = {0}, .handoff = true, .room = 9};
  ASSERT_EQ(rig.forward({segment, {.tokens = {3}, .pages = {1}}}, logits), Code::ok);
  const std::vector<std::uint32_t> first{0, 1, 2, 3};
  const std::vector<std::uint32_t> second{4, 5, 6, 7};
  EXPECT_EQ(rig.layers(), (std::map<std::uint32_t, std::vector<std::uint32_t>>{
                              {0, first}, {1, first}, {2, second}, {3, second}}));
}

TEST(ModelConfig, CutsThatAreImpossibleSaySo) {
  const ModelConfig demo = *find_model("demo");
  EXPECT_EQ(find_model("gpt-5").code(), Code::not_found);
  EXPECT_EQ(share_of(demo, {.tp_size = 3}).code(), Code::invalid_argument);
  EXPECT_EQ(share_of(demo, {.tp_size = 16}).code(), Code::invalid_argument);
  EXPECT_EQ(share_of(demo, {.pp_size = 9}).code(), Code::invalid_argument);
  EXPECT_TRUE(share_of(*find_model("llama-3.1-70b"), {.tp_size = 8, .pp_size = 4}).ok());
}

TEST(Sampler, GreedyAndSeeded) {
  const std::vector<float> logits{0.0F, 2.0F, 2.0F, 1.0F};
  EXPECT_EQ(sample(logits, {}, 0).token, 1);
  EXPECT_NEAR(sample(logits, {}, 0).logprob,
              2.0 - std::log(1.0 + 2.0 * std::exp(2.0) + std::exp(1.0)), 1e-6);
  std::vector<int> counts(4);
  for (std::uint32_t i = 0; i < 4000; ++i) {
    const SamplingParams params{.temperature = 1.0F, .seed = 5};
    ++counts[static_cast<std::size_t>(sample(logits, params, i).token)];
    EXPECT_EQ(sample(logits, params, i).token, sample(logits, params, i).token);
  }
  EXPECT_NEAR(counts[1], 4000 * 0.399, 150);  // e^2 / (1 + 2 e^2 + e)
  EXPECT_NEAR(counts[0], 4000 * 0.054, 80);
  EXPECT_EQ(sample(logits, {.temperature = 9.0F, .top_k = 1}, 3).token, 1);
  EXPECT_EQ(sample(logits, {.temperature = 9.0F, .top_p = 0.1F}, 3).token, 1);
}

TEST(Tokenizer, TextAndBytes) {
  EXPECT_EQ(encode_text("h\xC3\xA9"), (std::vector<std::int32_t>{kBos, 'h', 0xC3, 0xA9}));
  EXPECT_EQ(decode_tokens(encode_text("h\xC3\xA9\xF0\x9F\x98\x80")), "h\xC3\xA9\xF0\x9F\x98\x80");
  EXPECT_EQ(decode_tokens(std::vector<std::int32_t>{0xC3, 'x', 0xED, 0xA0, 0x80, kEos, -1, 900}),
            "\xEF\xBF\xBDx\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

}  // namespace
}  // namespace kvl::worker::test
