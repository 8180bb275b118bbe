// The body scan: what it finds, what it refuses, and that no bytes make it misbehave.
#include "router/http/body_scan.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>

namespace kvl::http {
namespace {

// The body in a heap block of its exact size, so that a sanitizer sees a read beyond it.
BodyScan scan_exact(std::string_view body) {
  const std::unique_ptr<char[]> copy(new char[body.size() + 1]);
  std::memcpy(copy.get(), body.data(), body.size());
  BodyScan scan = scan_body({copy.get(), body.size()});
  scan.rid = scan.prompt = {};
  return scan;
}

TEST(BodyScan, FindsTheLastBraceOfTheObjectOnly) {
  const std::string body = R"({"a":{"b":"}"},"c":[{},"\"}"]}  )"
                           "\n";
  const BodyScan scan = scan_body(body);
  ASSERT_EQ(scan.error, nullptr);
  EXPECT_EQ(scan.last_brace, body.rfind('}'));
  EXPECT_TRUE(scan.has_fields);
  EXPECT_FALSE(scan_body("{ }").has_fields);
}

TEST(BodyScan, StreamIsReadAtTheTopOnlyAndTheLastOneCounts) {
  EXPECT_TRUE(scan_body(R"({"stream": true})").stream);
  EXPECT_FALSE(scan_body(R"({"stream":true,"stream":false})").stream);
  EXPECT_FALSE(scan_body(R"({"x":{"stream":true}})").stream);
  EXPECT_FALSE(scan_body(R"({"x":["stream",true]})").stream);
}

TEST(BodyScan, CountsSequences) {
  EXPECT_EQ(scan_body(R"({"prompt":"one"})").prompts, 1u);
  EXPECT_EQ(scan_body(R"({"prompt":["a","b","c"]})").prompts, 3u);
  EXPECT_EQ(scan_body(R"({"prompt":[1,2,3]})").prompts, 1u);
  EXPECT_EQ(scan_body(R"({"input_ids":[[1,2],[3],[4,[5]]]})").prompts, 3u);
  EXPECT_EQ(scan_body(R"({"text":[]})").prompts, 1u);
  EXPECT_EQ(scan_body(R"({"messages":["a","b"]})").prompts, 1u);
  EXPECT_EQ(scan_body(R"({"n":4})").n, 4u);
  EXPECT_EQ(scan_body(R"({"sampling_params":{"n":5}})").n, 5u);
  EXPECT_EQ(scan_body(R"({"sampling_params":[{"n":2},{"n":7}]})").n, 7u);
  EXPECT_EQ(scan_body(R"({"other":{"n":5}})").n, 1u);
  EXPECT_EQ(scan_body(R"({"n":-3})").n, 1u);
  EXPECT_EQ(scan_body(R"({"n":99999999999999999999})").n, BodyScan::kFactorMax);
}

TEST(BodyScan, FindsThePromptAndCountsItsIds) {
  EXPECT_EQ(scan_body(R"({"prompt":"o\"ne","x":1})").prompt, R"("o\"ne")");
  EXPECT_EQ(scan_body(R"({"text": ["a","b"] })").prompt, R"(["a","b"])");
  EXPECT_EQ(scan_body(R"({"messages":[{"content":"a"}],"n":1})").prompt, R"([{"content":"a"}])");
  EXPECT_EQ(scan_body(R"({"x":{"prompt":"a"}})").prompt, "");
  EXPECT_EQ(scan_body(R"({"prompt":"a","text":"b"})").prompt, R"("b")") << "the last one counts";
  EXPECT_EQ(scan_body(R"({"input_ids":[5,6,7]})").prompt_tokens, 3u);
  EXPECT_EQ(scan_body(R"({"input_ids":[5,6,7],"text":"b"})").prompt_tokens, 0u);
  EXPECT_EQ(scan_body(R"({"input_ids":[[5,6],[7]]})").prompt_tokens, 0u);
  EXPECT_EQ(scan_body(R"({"messages":[{"a":1},{"b":2}]})").prompt_tokens, 0u);
  EXPECT_EQ(scan_body(R"({"input_ids":[]})").prompt_tokens, 0u);
}

TEST(BodyScan, KeepsTheRidAsWritten) {
  EXPECT_EQ(scan_body(R"({"rid":"a\"b" ,"x":1})").rid, R"("a\"b")");
  EXPECT_EQ(scan_body(R"({"rid":["a","b"]})").rid, R"(["a","b"])");
  EXPECT_EQ(scan_body(R"({"x":{"rid":"a"}})").rid, "");
}

TEST(BodyScan, NamesSessionKeysEvenWhenEscaped) {
  for (const char* key : {"bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank",
                          "data_parallel_rank", "disagg_prefill_dp_rank"}) {
    EXPECT_EQ(scan_body(std::string("{\"a\":1,\"") + key + "\":1}").session_key, key);
  }
  EXPECT_EQ(scan_body(R"({"bootstrap\u005Froom":1})").session_key, "bootstrap_room");
  EXPECT_EQ(scan_body(R"({"x":{"bootstrap_room":1}})").session_key, "");
}

TEST(BodyScan, RefusesWhatIsNotAJsonObject) {
  for (const char* body : {"",
                           " ",
                           "[]",
                           "1",
                           "{",
                           "}",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{\"a\":1,}",
                           "{,}",
                           "{\"a\":1}}",
                           "{\"a\":1} x",
                           "{\"a\":tru}",
                           "{\"a\":01}",
                           "{\"a\":1.}",
                           "{\"a\":.5}",
                           "{\"a\":+1}",
                           "{\"a\":1e}",
                           "{\"a\":\"\\x\"}",
                           "{\"a\":\"\\u12g4\"}",
                           "{\"a\":\"",
                           "{\"a\":\"\\",
                           "{\"a\":[1 2]}",
                           "{\"a\":[1,]}",
                           "{\"a\":{\"b\":1]}",
                           "{'a':1}",
                           "{\"a\":\"\n\"}",
                           "{\"a\":NaN}",
                           "{a:1}",
                           "{\"a\" 1}",
                           "{\"a\":-}"}) {
    EXPECT_NE(scan_exact(body).error, nullptr) << body;
  }
  EXPECT_NE(scan_body(std::string("{\"a\":\"\0\"}", 9)).error, nullptr);
}

TEST(BodyScan, DepthIsBounded) {
  const auto nested = [](int depth) {
    return "{\"a\":" + std::string(static_cast<std::size_t>(depth), '[') +
           std::string(static_cast<std::size_t>(depth), ']') + "}";
  };
  EXPECT_EQ(scan_body(nested(kJsonDepthMax - 2)).error, nullptr);
  EXPECT_NE(scan_body(nested(kJsonDepthMax)).error, nullptr);
  EXPECT_NE(scan_body(std::string(1 << 20, '[')).error, nullptr);
  EXPECT_NE(scan_body("{\"a\":" + std::string(1 << 20, '[')).error, nullptr);
}

TEST(BodyScan, AcceptsWhatJsonAllows) {
  for (const char* body :
       {"{}", " { } ", R"({"a":null,"b":true,"c":-0.5e+10,"d":[[],{}],"e":"\u00e9\n\/"})",
        "{\"\":\"\"}", "{\"a\":0}", "{\"long\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}"}) {
    EXPECT_EQ(scan_exact(body).error, nullptr) << body;
  }
}

// Mutated bodies end in an answer; where the scan accepts one, splicing a field at last_brace gives
// a body that it accepts again, with one more field.
TEST(BodyScan, MutationsNeverBreakIt) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::string origin =
      R"({"text":["a b\u0041","\\"],"sampling_params":{"n":2,"stop":["}"]},"stream":true,"rid":"x"})";
  constexpr std::string_view kSpice = "{}[]\",:\\u0tfn-1.e \n";
  for (int round = 0; round < 20000; ++round) {
    std::string body = origin;
    for (std::uint64_t edits = random() % 6; edits > 0 && !body.empty(); --edits) {
      const std::size_t at = random() % body.size();
      switch (random() % 4) {
        case 0:
          body[at] = static_cast<char>(random());
          break;
        case 1:
          body[at] = kSpice[random() % kSpice.size()];
          break;
        case 2:
          body.erase(at, random() % 8);
          break;
        default:
          body.insert(at, body.substr(random() % body.size(), random() % 8));
          break;
      }
    }
    const BodyScan scan = scan_exact(body);
    if (scan.error != nullptr) {
      ASSERT_LE(scan.error_offset, body.size());
      continue;
    }
    ASSERT_EQ(body[scan.last_brace], '}');
    body.insert(scan.last_brace,
                scan.has_fields ? ",\"bootstrap_room\":1" : "\"bootstrap_room\":1");
    const BodyScan spliced = scan_exact(body);
    ASSERT_EQ(spliced.error, nullptr) << body;
    ASSERT_FALSE(spliced.session_key.empty()) << body;
  }
}

}  // namespace
}  // namespace kvl::http
