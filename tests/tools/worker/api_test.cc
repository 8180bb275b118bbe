// JSON bodies to requests and updates to JSON bodies, without HTTP.
#include "worker/api.h"

#include <gtest/gtest.h>

#include "worker/tokenizer.h"

namespace kvl::worker::test {
namespace {

const ApiOptions kOptions{"demo", false};
const ApiOptions kKvOptions{"tiny", true};

Call good(ApiForm form, std::string_view body, const ApiOptions& options = kOptions) {
  ApiError error;
  std::optional<Call> call = parse_call(form, body, options, 7, error);
  EXPECT_TRUE(call.has_value()) << error.message << "\n" << body;
  return call.value_or(Call{});
}

ApiError bad(ApiForm form, std::string_view body, const ApiOptions& options = kOptions) {
  ApiError error{0, "", ""};
  EXPECT_FALSE(parse_call(form, body, options, 7, error).has_value()) << body;
  EXPECT_FALSE(error.message.empty()) << body;
  return error;
}

TEST(Api, Generate) {
  const Call call = good(ApiForm::generate, R"({"text": "hi", "rid": "r1", "stream": true,
      "return_logprob": true, "bootstrap_host": "10.0.0.1", "bootstrap_port": 8998,
      "bootstrap_room": 9223372036854775807,
      "sampling_params": {"max_new_tokens": 3, "temperature": 0, "top_k": 5, "seed": 4}})");
  ASSERT_EQ(call.requests.size(), 1U);
  const Request& request = call.requests[0];
  EXPECT_EQ(request.tokens, encode_text("hi"));
  EXPECT_EQ(request.rid, "r1");
  EXPECT_TRUE(call.stream && call.logprobs && !call.list);
  EXPECT_EQ(request.sampling.max_new_tokens, 3U);
  EXPECT_EQ(request.sampling.temperature, 0.0F);
  EXPECT_EQ(request.sampling.top_k, 5U);
  EXPECT_EQ(request.session->host, "10.0.0.1");
  EXPECT_EQ(request.session->port, 8998);
  EXPECT_EQ(request.session->room, 9223372036854775807U);
}

TEST(Api, ListsAndRooms) {
  const Call call = good(ApiForm::generate, R"({"input_ids": [[1, 2], [3]], "bootstrap_host": "h",
      "bootstrap_port": null, "bootstrap_room": 41, "sampling_params": {"n": 2}})");
  ASSERT_EQ(call.requests.size(), 4U);
  EXPECT_TRUE(call.list);
  EXPECT_EQ(call.requests[1].tokens, (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(call.requests[2].tokens, (std::vector<std::int32_t>{3}));
  EXPECT_EQ(call.requests[3].session->room, 44U);
  EXPECT_EQ(call.requests[3].session->port, -1);
  EXPECT_EQ(call.requests[1].sampling.seed, 1U);
  const Call rooms = good(ApiForm::completion, R"({"prompt": ["a", "b"], "bootstrap_room": [5, 9],
      "bootstrap_host": ["x", "y"], "bootstrap_port": [1, 2]})");
  EXPECT_EQ(rooms.requests[1].session->room, 9U);
  EXPECT_EQ(rooms.requests[1].session->host, "y");
}

TEST(Api, KvOnly) {
  const Call call = good(ApiForm::generate, R"({"kv_only": {"tokens": 1030, "hash_ids": [4, 5, 6],
      "block_tokens": 512}, "sampling_params": {"max_new_tokens": 2}})",
                         kKvOptions);
  EXPECT_EQ(call.requests[0].content_tokens, 1030U);
  EXPECT_EQ(call.requests[0].content->chain.size(), 3U);
  bad(ApiForm::generate, R"({"kv_only": {"tokens": 1024, "hash_ids": [4, 5, 6]}})", kKvOptions);
  bad(ApiForm::generate, R"({"kv_only": {"tokens": 9, "hash_ids": []}})", kKvOptions);
  bad(ApiForm::generate, R"({"kv_only": {"tokens": 9, "hash_ids": [1]}})");
}

TEST(Api, Chat) {
  const Call call = good(ApiForm::chat, R"({"model": "demo", "max_tokens": 2, "messages": [
      {"role": "system", "content": "be brief"},
      {"role": "user", "content": [{"type": "text", "text": "hi"}]}]})");
  EXPECT_EQ(call.requests[0].tokens,
            encode_text("<|system|>\nbe brief\n<|user|>\nhi\n<|assistant|>\n"));
}

TEST(Api, WrongBodiesSayWhat) {
  const std::pair<ApiForm, const char*> bodies[] = {
      {ApiForm::generate, ""},
      {ApiForm::generate, "[]"},
      {ApiForm::generate, "{"},
      {ApiForm::generate, "{}"},
      {ApiForm::generate, R"({"text": 3})"},
      {ApiForm::generate, R"({"text": "a", "input_ids": [1]})"},
      {ApiForm::generate, R"({"text": []})"},
      {ApiForm::generate, R"({"input_ids": [1.5]})"},
      {ApiForm::generate, R"({"input_ids": [-1]})"},
      {ApiForm::generate, R"({"input_ids": [1, "a"]})"},
      {ApiForm::generate, R"({"text": "a", "stream": 1})"},
      {ApiForm::generate, R"({"text": "a", "sampling_params": []})"},
      {ApiForm::generate, R"({"text": "a", "sampling_params": {"max_new_tokens": 0}})"},
      {ApiForm::generate, R"({"text": "a", "sampling_params": {"max_new_tokens": 1e30}})"},
      {ApiForm::generate, R"({"text": "a", "sampling_params": {"temperature": -1}})"},
      {ApiForm::generate, R"({"text": "a", "sampling_params": {"top_p": 0}})"},
      {ApiForm::generate, R"({"text": "a", "sampling_params": {"stop": ["x"]}})"},
      {ApiForm::generate, R"({"text": "a", "sampling_params": {"n": 100000}})"},
      {ApiForm::generate, R"({"text": "a", "bootstrap_room": 1})"},
      {ApiForm::generate, R"({"text": "a", "bootstrap_host": "h"})"},
      {ApiForm::generate, R"({"text": "a", "bootstrap_host": "h", "bootstrap_room": -1})"},
      {ApiForm::generate,
       R"({"text": "a", "bootstrap_host": "h", "bootstrap_room": 18446744073709551615})"},
      {ApiForm::generate, R"({"text": "a", "bootstrap_host": "h", "bootstrap_room": [1, 2]})"},
      {ApiForm::completion, R"({"max_tokens": 3})"},
      {ApiForm::chat, R"({"messages": []})"},
      {ApiForm::chat, R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"},
  };
  for (const auto& [form, body] : bodies) EXPECT_EQ(bad(form, body).http_status, 400) << body;
  const ApiError model = bad(ApiForm::chat, R"({"model": "gpt", "messages": [{"content": "x"}]})");
  EXPECT_EQ(model.http_status, 404);
  EXPECT_EQ(model.type, "not_found");
  EXPECT_EQ(bad(ApiForm::generate, std::string(5000, '[')).http_status, 400);
}

Update tokens(std::vector<OutputToken> list) {
  Update update;
  update.tokens = std::move(list);
  return update;
}

TEST(Api, AnswersAndStreams) {
  const Call call = good(ApiForm::generate, R"({"text": "x", "rid": "r", "return_logprob": true})");
  Answer answer(call, "demo");
  answer.take(0, tokens({{'h', -0.5F, 1}}));
  const Update last = [] {
    Update update = tokens({{'i', -1.0F, 2}});
    update.done = true;
    update.figures.prompt_tokens = 2;
    return update;
  }();
  const std::string middle = answer.events(0, tokens({}));
  EXPECT_NE(middle.find(R"("text":"h")"), std::string::npos) << middle;
  answer.take(0, last);
  EXPECT_TRUE(answer.done());
  const std::string body = answer.body();
  for (const char* const part :
       {R"("text":"hi")", R"("output_ids":[104,105])", R"("finish_reason":{"type":"length")",
        R"("prompt_tokens":2)", R"("completion_tokens":2)", "output_token_logprobs"}) {
    EXPECT_NE(body.find(part), std::string::npos) << part << "\n" << body;
  }
  EXPECT_NE(answer.events(0, last).find("data: [DONE]"), std::string::npos);

  Answer failed(call, "demo");
  Update failure;
  failure.done = true;
  failure.status = Status(Code::peer_lost, "the handoff failed");
  failed.take(0, failure);
  ASSERT_TRUE(failed.error().has_value());
  EXPECT_EQ(failed.error()->http_status, 503);
  EXPECT_EQ(error_body(*failed.error()),
            R"({"error":{"message":"the handoff failed","type":"peer_lost","code":503}})");
}

}  // namespace
}  // namespace kvl::worker::test
