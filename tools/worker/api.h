// The HTTP API without HTTP: JSON bodies to requests, updates to JSON bodies. SGLang's /generate
// and OpenAI's /v1/completions and /v1/chat/completions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/status.h"
#include "worker/request.h"

namespace kvl::worker {

enum class ApiForm : std::uint8_t { generate, completion, chat };

// An answer that is not a result. `type` is a Code's text.
struct ApiError {
  int http_status = 400;
  std::string type = "invalid_argument";
  std::string message;
  bool of_peer = false;  // the other worker of the pair is to blame
};
// {"error": {"message", "type", "code"}}, as OpenAI has it, for every form.
std::string error_body(const ApiError& error);
// What a failed request answers: 400, 404, 503, 504, 499, …
ApiError error_of(const Status& status, std::string_view reason);

// One HTTP request: one or more sequences.
struct Call {
  ApiForm form = ApiForm::generate;
  std::vector<Request> requests;
  bool list = false;  // the answer is a list even of one
  bool stream = false;
  bool logprobs = false;
  bool usage = false;  // OpenAI streams: a last chunk with the usage
  std::string rid;     // of the call; requests have rid or rid_i
  std::string model;   // as asked for
};

struct ApiOptions {
  std::string model;  // the only one served
  bool kv_only = false;
};
// `error` is filled where nothing is returned. `body` is hostile. `serial` makes a rid where the
// body names none.
std::optional<Call> parse_call(ApiForm form, std::string_view body, const ApiOptions& options,
                               std::uint64_t serial, ApiError& error);

// Collects the updates of a call and renders its answer.
class Answer {
 public:
  Answer(const Call& call, std::string model);

  // One update of sequence `index`.
  void take(std::size_t index, const Update& update);
  bool done() const { return left_ == 0; }
  // The first failure, once done. A call with one failed sequence fails.
  const std::optional<ApiError>& error() const { return error_; }

  // The whole answer, once done and without error.
  std::string body() const;
  // What a stream says after take(): zero or more "data: …" events; the last ones when done().
  std::string events(std::size_t index, const Update& update) const;

 private:
  struct Part {
    std::string rid;
    std::vector<OutputToken> output;
    bool done = false;
    bool stopped = false;
    bool digests = false;
    Figures figures;
    double seconds = 0;
  };
  struct Render;  // api_render.cc
  ApiForm form_;
  bool list_, logprobs_, usage_;
  std::string model_, rid_;
  std::int64_t created_s_ = 0, started_ns_ = 0;
  std::vector<Part> parts_;
  std::size_t left_;
  std::optional<ApiError> error_;
};

}  // namespace kvl::worker
