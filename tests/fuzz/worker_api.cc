// Bodies of the worker's API: a call that parses is one that the scheduler can take.
#include "tests/fuzz/fuzz.h"
#include "tools/worker/api.h"

namespace kvl::fuzz {

void fuzz_worker_api(Bytes input) {
  if (input.empty() || input.size() > 16 << 10) return;
  const auto choice = std::to_integer<unsigned>(input[0]);
  const auto form = static_cast<worker::ApiForm>(choice % 3);
  const worker::ApiOptions options{.model = "demo", .kv_only = (choice & 4U) != 0};
  worker::ApiError error;
  const auto call = worker::parse_call(form, text_of(input.subspan(1)), options, 1, error);
  if (!call) {
    require(error.http_status >= 400 && !error.message.empty(), "a refusal says why");
    require(!worker::error_body(error).empty(), "and has a body");
    return;
  }
  require(!call->requests.empty() && call->requests.size() <= 256, "sequences are bounded");
  for (const worker::Request& request : call->requests) {
    require(!request.rid.empty(), "every sequence has an id");
    require(request.sampling.temperature >= 0 && request.sampling.top_p > 0, "sampling is sane");
    require(!request.content || request.content_tokens > 0, "content stands for tokens");
  }
  worker::Answer answer(*call, "demo");
  for (std::size_t i = 0; i < call->requests.size(); ++i) {
    worker::Update update;
    update.tokens = {{65, -0.5F, 1}};
    update.done = true;
    answer.take(i, update);
    require(!answer.events(i, update).empty(), "a stream says something");
  }
  require(answer.done() && !answer.body().empty(), "an answer is complete");
}

Seeds seeds_worker_api() {
  return {seed(std::string(1, '\0') +
               R"({"text":["a","b"],"sampling_params":{"n":2,"seed":-1,)"
               R"("temperature":0,"max_new_tokens":9},"return_logprob":true,"rid":"x",)"
               R"("bootstrap_host":"h","bootstrap_port":1,"bootstrap_room":[1,2,3,4]})"),
          seed(std::string(1, '\0') + R"({"input_ids":[1,2,3],"stream":true})"),
          seed("\x01"
               R"({"prompt":[[1],[2]],"max_tokens":3,"logprobs":1,"model":"demo"})"),
          seed("\x02"
               R"({"messages":[{"role":"user","content":[{"type":"text","text":"q"}]}],)"
               R"("stream_options":{"include_usage":true},"top_k":4,"top_p":0.5})"),
          seed("\x04"
               R"({"kv_only":{"tokens":600,"hash_ids":[1,-2]}})")};
}

}  // namespace kvl::fuzz
