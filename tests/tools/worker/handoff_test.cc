// Prefill and decode workers of every shape: what decode continues from transferred pages is, token
// for token and bit for bit, what one worker computes alone.
#include "tests/tools/worker/worker_rig.h"
#include "worker/kv_only.h"
#include "worker/tokenizer.h"

namespace kvl::worker::test {
namespace {

struct Shape {
  std::uint32_t tp = 1;
  std::uint32_t pp = 1;
};
constexpr Shape kShapes[] = {{1, 1}, {2, 1}, {4, 1}, {1, 2}, {2, 2}, {4, 2}};

WorkerOptions options_of(const Shape& shape) {
  WorkerOptions options;
  options.tp = shape.tp;
  options.pp = shape.pp;
  options.page_tokens = 16;
  options.pages = 64;
  return options;
}

Request prompt(std::string_view text, std::uint32_t output = 5) {
  Request request;
  request.tokens = encode_text(text);
  request.sampling.max_new_tokens = output;
  return request;
}

const char* const kText = "Pages of keys and values leave one machine and reach another in time.";

TEST(HandoffWorkers, EveryPairOfShapesGivesTheBitsOfOneWorker) {
  const std::vector<OutputToken> expected = run_alone(*open_worker(options_of({})), prompt(kText));
  ASSERT_EQ(expected.size(), 5U);
  const Meeting meeting;
  std::vector<std::unique_ptr<WorkerServer>> decodes;
  for (const Shape& to : kShapes) decodes.push_back(meeting.decode(options_of(to)));
  for (const Shape& from : kShapes) {
    const std::unique_ptr<WorkerServer> prefill = meeting.prefill(options_of(from));
    for (std::size_t i = 0; i < decodes.size(); ++i) {
      decodes[i]->scheduler().flush_cache();
      const Handed handed = run_well(*prefill, *decodes[i], prompt(kText));
      EXPECT_EQ(handed.tokens, expected) << "TP " << from.tp << " PP " << from.pp << " to TP "
                                         << kShapes[i].tp << " PP " << kShapes[i].pp;
      EXPECT_EQ(handed.decode.figures.bytes_moved, 70U * 4096);
    }
  }
}

struct Variant {
  const char* name;
  HandoffMode mode;
  const char* dtype;
  std::uint32_t decode_page_tokens;
  const char* decode_order;
};

TEST(HandoffWorkers, PullBf16AndUnequalPages) {
  const Variant variants[] = {
      {"pull", HandoffMode::pull, "f32", 16, "layer_first"},
      {"bf16", HandoffMode::push, "bf16", 16, "layer_first"},
      {"smaller pages", HandoffMode::push, "f32", 8, "page_first"},
      {"larger pages, pull", HandoffMode::pull, "bf16", 32, "page_first"},
  };
  for (const Variant& variant : variants) {
    WorkerOptions single = options_of({});
    single.dtype = variant.dtype;
    const std::vector<OutputToken> expected = run_alone(*open_worker(single), prompt(kText));
    WorkerOptions prefill = options_of({4, 1});
    WorkerOptions decode = options_of({2, 2});
    prefill.dtype = decode.dtype = variant.dtype;
    decode.mode = variant.mode;
    decode.page_tokens = variant.decode_page_tokens;
    decode.page_order = variant.decode_order;
    const Meeting meeting;
    const Handed handed =
        run_well(*meeting.prefill(prefill), *meeting.decode(decode), prompt(kText));
    EXPECT_EQ(handed.tokens, expected) << variant.name;
  }
}

TEST(HandoffWorkers, PrefixesAreReusedOnBothSides) {
  const Meeting meeting;
  const std::unique_ptr<WorkerServer> prefill = meeting.prefill(options_of({2, 1}));
  const std::unique_ptr<WorkerServer> decode = meeting.decode(options_of({1, 1}));
  const Handed first = run_well(*prefill, *decode, prompt(kText));
  EXPECT_EQ(first.decode.figures.cached_tokens, 0U);
  const Handed second = run_well(*prefill, *decode, prompt(kText));
  EXPECT_EQ(second.tokens, first.tokens);
  EXPECT_EQ(second.prefill.figures.cached_tokens, 64U);
  EXPECT_EQ(second.decode.figures.cached_tokens, 64U);
  EXPECT_EQ(second.decode.figures.bytes_moved, 6U * 4096);  // what is left of 70 tokens
  decode->scheduler().flush_cache();
  const Handed third = run_well(*prefill, *decode, prompt(kText));
  EXPECT_EQ(third.tokens, first.tokens);
  EXPECT_EQ(third.decode.figures.cached_tokens, 0U);
}

// Seeded sampling draws the same tokens wherever the draw is made.
TEST(HandoffWorkers, SamplingSurvivesTheHandoff) {
  Request request = prompt(kText, 8);
  request.sampling.temperature = 1.5F;
  request.sampling.seed = 11;
  const std::vector<OutputToken> expected = run_alone(*open_worker(options_of({})), request);
  const Meeting meeting;
  EXPECT_EQ(
      run_well(*meeting.prefill(options_of({1, 2})), *meeting.decode(options_of({2, 1})), request)
          .tokens,
      expected);
}

TEST(HandoffWorkers, ManyRequestsAtOnceInASmallPool) {
  const std::unique_ptr<WorkerServer> alone = open_worker(options_of({}));
  WorkerOptions small = options_of({2, 1});
  small.pages = 12;  // two requests at a time
  const Meeting meeting;
  const std::unique_ptr<WorkerServer> prefill = meeting.prefill(small);
  const std::unique_ptr<WorkerServer> decode = meeting.decode(small);
  struct One {
    Request request;
    Outcome at_prefill, at_decode;
  };
  std::vector<One> all(12);
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].request = prompt(std::string(kText) + std::to_string(i), 4);
    all[i].request.session = session_at(*prefill);
    // The two sides see them in different orders.
    decode->scheduler().submit(all[i].request, all[i].at_decode.sink());
  }
  for (auto one = all.rbegin(); one != all.rend(); ++one) {
    prefill->scheduler().submit(one->request, one->at_prefill.sink());
  }
  for (One& one : all) {
    EXPECT_TRUE(one.at_decode.wait().status.ok());
    EXPECT_TRUE(one.at_prefill.wait().status.ok());
    one.request.session.reset();
    EXPECT_EQ(one.at_decode.tokens(), run_alone(*alone, one.request));
  }
  const SchedulerFigures figures = decode->figures();
  EXPECT_EQ(figures.handoffs_ok, 12U);
  EXPECT_EQ(figures.pages_quarantined, 0U);
}

Request kv_prompt(std::vector<std::uint64_t> ids, std::uint32_t tokens) {
  Request request;
  request.content = content_of_ids(ids, 512);
  request.content_tokens = tokens;
  request.sampling.max_new_tokens = 3;
  return request;
}

TEST(HandoffWorkers, KvOnlyChecksEveryByteOfARealGeometry) {
  for (const char* const model : {"tiny", "llama-3.1-8b", "deepseek-v3"}) {
    WorkerOptions prefill = options_of({2, 2});
    prefill.model = model;
    prefill.kv_only = true;
    WorkerOptions decode = prefill;
    decode.tp = 4;
    decode.pp = 1;
    decode.page_tokens = 32;
    const Meeting meeting;
    const std::unique_ptr<WorkerServer> from = meeting.prefill(prefill);
    const std::unique_ptr<WorkerServer> to = meeting.decode(decode);
    const Handed first = run_well(*from, *to, kv_prompt({1, 2}, 700));
    EXPECT_EQ(first.tokens.size(), 3U) << model;
    EXPECT_EQ(first.decode.figures.pages_verified, 22U);
    EXPECT_EQ(first.decode.figures.pages_wrong, 0U);
    const Handed second = run_well(*from, *to, kv_prompt({1, 3}, 700));
    EXPECT_EQ(second.prefill.figures.cached_tokens, 512U);
    EXPECT_EQ(second.decode.figures.cached_tokens, 512U);
    EXPECT_EQ(second.decode.figures.pages_moved, 6U);
    EXPECT_EQ(second.decode.figures.pages_verified, 22U);
  }
}

}  // namespace
}  // namespace kvl::worker::test
