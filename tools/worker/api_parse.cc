// JSON bodies to requests.
#include <boost/json/parse.hpp>

#include "worker/api.h"
#include "worker/json_read.h"
#include "worker/kv_only.h"
#include "worker/tokenizer.h"

namespace kvl::worker {
namespace {

namespace json = boost::json;

constexpr std::int64_t kTokensMax = 1 << 24;
constexpr std::size_t kRequestsMax = 256;  // sequences of one call
constexpr std::int64_t kIntegerMax = INT64_MAX;

std::vector<std::int32_t> tokens_of(const json::array& list, std::string_view key) {
  std::vector<std::int32_t> tokens;
  tokens.reserve(list.size());
  for (const json::value& value : list) {
    tokens.push_back(static_cast<std::int32_t>(as_integer(value, key, 0, INT32_MAX)));
  }
  return tokens;
}

class Parser {
 public:
  Parser(ApiForm form, const json::object& body, const ApiOptions& options)
      : form_(form), body_(body), options_(options) {}

  Call parse(std::uint64_t serial);

 private:
  void prompts();
  void prompt_value(const json::value& value, std::string_view key);
  void kv_only(const json::object& spec);
  void chat();
  void sampling();
  void copies(std::int64_t n);
  void sessions();
  void add(std::vector<std::int32_t> tokens);
  void check_model();

  ApiForm form_;
  const json::object& body_;
  const ApiOptions& options_;
  Call call_;
};

void Parser::add(std::vector<std::int32_t> tokens) {
  if (call_.requests.size() >= kRequestsMax) throw BadBody{"too many prompts in one request"};
  call_.requests.emplace_back().tokens = std::move(tokens);
}

// A string, a list of token ids, or a list of either.
void Parser::prompt_value(const json::value& value, std::string_view key) {
  if (value.is_string()) return add(encode_text(value.get_string()));
  if (!value.is_array()) throw BadBody{std::string(key) + " must be a string or a list"};
  const json::array& list = value.get_array();
  if (list.empty()) throw BadBody{std::string(key) + " is empty"};
  if (list.front().is_number()) return add(tokens_of(list, key));
  call_.list = true;
  for (const json::value& item : list) {
    if (item.is_string()) {
      add(encode_text(item.get_string()));
    } else if (item.is_array()) {
      add(tokens_of(item.get_array(), key));
    } else {
      throw BadBody{std::string(key) + " must hold strings or lists of token ids"};
    }
  }
}

void Parser::kv_only(const json::object& spec) {
  if (!options_.kv_only) throw BadBody{"kv_only needs a worker that runs with --kv-only"};
  const std::int64_t tokens = read_integer(spec, "tokens", 1, kTokensMax, 0);
  const std::int64_t block = read_integer(spec, "block_tokens", 1, 1 << 20, 512);
  const json::value* const ids = find(spec, "hash_ids");
  if (tokens == 0 || ids == nullptr || !ids->is_array()) {
    throw BadBody{"kv_only needs tokens and hash_ids"};
  }
  std::vector<std::uint64_t> list;
  for (const json::value& id : ids->get_array()) {
    list.push_back(static_cast<std::uint64_t>(as_integer(id, "hash_ids", INT64_MIN, kIntegerMax)));
  }
  if (static_cast<std::int64_t>(list.size()) != (tokens + block - 1) / block) {
    throw BadBody{"hash_ids must name one block for every block_tokens tokens"};
  }
  Request& request = call_.requests.emplace_back();
  request.content = content_of_ids(list, static_cast<std::uint32_t>(block));
  request.content_tokens = static_cast<std::uint32_t>(tokens);
}

void Parser::chat() {
  const json::value* const messages = find(body_, "messages");
  if (messages == nullptr || !messages->is_array() || messages->get_array().empty()) {
    throw BadBody{"messages must be a list of at least one message"};
  }
  std::string text;
  for (const json::value& value : messages->get_array()) {
    if (!value.is_object()) throw BadBody{"a message must be an object"};
    const json::object& message = value.get_object();
    text += "<|" + read_text(message, "role") + "|>\n";
    const json::value* const content = find(message, "content");
    if (content != nullptr && content->is_array()) {
      for (const json::value& part : content->get_array()) {
        if (!part.is_object() || read_text(part.get_object(), "type") != "text") {
          throw BadBody{"only content parts of type text are supported"};
        }
        text += read_text(part.get_object(), "text");
      }
    } else {
      text += read_text(message, "content");
    }
    text += "\n";
  }
  add(encode_text(text + "<|assistant|>\n"));
}

void Parser::prompts() {
  if (const json::value* const spec = find(body_, "kv_only")) {
    if (!spec->is_object()) throw BadBody{"kv_only must be an object"};
    return kv_only(spec->get_object());
  }
  if (form_ == ApiForm::chat) return chat();
  if (form_ == ApiForm::completion) {
    const json::value* const prompt = find(body_, "prompt");
    if (prompt == nullptr) throw BadBody{"prompt is missing"};
    prompt_value(*prompt, "prompt");
    call_.list = false;  // completions answer with choices
    return;
  }
  const json::value* const text = find(body_, "text");
  const json::value* const ids = find(body_, "input_ids");
  if ((text == nullptr) == (ids == nullptr)) throw BadBody{"give one of text and input_ids"};
  prompt_value(text != nullptr ? *text : *ids, text != nullptr ? "text" : "input_ids");
}

void Parser::sampling() {
  const bool native = form_ == ApiForm::generate;
  json::object nested;
  if (const json::value* const params = find(body_, "sampling_params"); native && params) {
    if (!params->is_object()) throw BadBody{"sampling_params must be an object"};
    nested = params->get_object();
  }
  const json::object& from = native ? nested : body_;
  if (const json::value* const stop = find(from, "stop")) {
    const bool empty = (stop->is_array() && stop->get_array().empty()) ||
                       (stop->is_string() && stop->get_string().empty());
    if (!empty) throw BadBody{"stop is not supported"};
  }
  SamplingParams params;
  const char* limit = native ? "max_new_tokens" : "max_tokens";
  if (form_ == ApiForm::chat && find(from, "max_completion_tokens")) {
    limit = "max_completion_tokens";
  }
  const std::int64_t fallback = form_ == ApiForm::completion ? 16 : 128;
  params.max_new_tokens =
      static_cast<std::uint32_t>(read_integer(from, limit, 1, kTokensMax, fallback));
  params.temperature = static_cast<float>(read_number(from, "temperature", 0, 100, 1));
  params.top_p = static_cast<float>(read_number(from, "top_p", 1e-6, 1, 1));
  const std::int64_t top_k = read_integer(from, "top_k", -1, INT32_MAX, -1);
  params.top_k = top_k < 0 ? 0 : static_cast<std::uint32_t>(top_k);
  const char* const seed = find(from, "sampling_seed") != nullptr ? "sampling_seed" : "seed";
  params.seed = static_cast<std::uint64_t>(read_integer(from, seed, INT64_MIN, kIntegerMax, 0));
  params.ignore_eos = read_bool(from, "ignore_eos", false);
  for (Request& request : call_.requests) request.sampling = params;
  copies(read_integer(from, "n", 1, static_cast<std::int64_t>(kRequestsMax), 1));
}

// n > 1: as many of each prompt, with seeds of their own.
void Parser::copies(std::int64_t n) {
  if (n == 1) return;
  if (call_.requests.size() * static_cast<std::size_t>(n) > kRequestsMax) {
    throw BadBody{"too many prompts in one request"};
  }
  std::vector<Request> all;
  for (const Request& request : call_.requests) {
    for (std::int64_t i = 0; i < n; ++i) {
      all.push_back(request);
      all.back().sampling.seed += static_cast<std::uint64_t>(i);
    }
  }
  call_.requests = std::move(all);
  call_.list = form_ == ApiForm::generate;
}

// bootstrap_host, bootstrap_port and bootstrap_room: scalars (rooms then count up) or one per
// sequence.
void Parser::sessions() {
  const json::value* const room = find(body_, "bootstrap_room");
  if (room == nullptr) {
    if (find(body_, "bootstrap_host")) throw BadBody{"bootstrap_host without bootstrap_room"};
    return;
  }
  const auto at = [&](const json::value* value, std::size_t i) -> const json::value* {
    if (value == nullptr || !value->is_array()) return value;
    if (value->get_array().size() != call_.requests.size()) {
      throw BadBody{"bootstrap lists must have one entry per sequence"};
    }
    const json::value& item = value->get_array()[i];
    return item.is_null() ? nullptr : &item;
  };
  const json::value* const host = find(body_, "bootstrap_host");
  const json::value* const port = find(body_, "bootstrap_port");
  for (std::size_t i = 0; i < call_.requests.size(); ++i) {
    Session session;
    const json::value* const h = at(host, i);
    if (h == nullptr || !h->is_string()) throw BadBody{"bootstrap_host must be a string"};
    session.host = h->get_string();
    if (const json::value* const p = at(port, i)) {
      session.port = as_integer(*p, "bootstrap_port", 0, 65535);
    }
    const json::value* const r = at(room, i);
    if (r == nullptr) throw BadBody{"bootstrap_room must be an integer"};
    std::int64_t number = as_integer(*r, "bootstrap_room", 0, kIntegerMax);
    if (!room->is_array()) {
      number = static_cast<std::int64_t>((static_cast<std::uint64_t>(number) + i) &
                                         static_cast<std::uint64_t>(kIntegerMax));
    }
    session.room = static_cast<std::uint64_t>(number);
    call_.requests[i].session = std::move(session);
  }
}

void Parser::check_model() {
  call_.model = read_text(body_, "model");
  if (!call_.model.empty() && call_.model != "default" && call_.model != options_.model) {
    throw BadBody{"no model '" + call_.model + "' here; this worker serves " + options_.model, 404};
  }
}

Call Parser::parse(std::uint64_t serial) {
  call_.form = form_;
  check_model();
  prompts();
  sampling();
  sessions();
  call_.stream = read_bool(body_, "stream", false);
  if (form_ == ApiForm::completion) {
    call_.logprobs = find(body_, "logprobs") != nullptr;
  } else {
    call_.logprobs =
        read_bool(body_, form_ == ApiForm::chat ? "logprobs" : "return_logprob", false);
  }
  if (const json::value* const options = find(body_, "stream_options")) {
    if (!options->is_object()) throw BadBody{"stream_options must be an object"};
    call_.usage = read_bool(options->get_object(), "include_usage", false);
  }
  const bool digests = read_bool(body_, "return_logits_digest", false);
  call_.rid = read_text(body_, "rid");
  if (call_.rid.empty()) call_.rid = "kvlane-" + std::to_string(serial);
  for (std::size_t i = 0; i < call_.requests.size(); ++i) {
    call_.requests[i].digests = digests;
    call_.requests[i].rid =
        call_.requests.size() == 1 ? call_.rid : call_.rid + "_" + std::to_string(i);
  }
  return std::move(call_);
}

}  // namespace

std::optional<Call> parse_call(ApiForm form, std::string_view body, const ApiOptions& options,
                               std::uint64_t serial, ApiError& error) try {
  json::error_code code;
  const json::value value = json::parse(json::string_view(body.data(), body.size()), code);
  if (code) throw BadBody{"the body is not JSON: " + code.message()};
  if (!value.is_object()) throw BadBody{"the body must be a JSON object"};
  return Parser(form, value.get_object(), options).parse(serial);
} catch (const BadBody& bad) {
  const bool missing = bad.http_status == 404;
  error = {bad.http_status, missing ? "not_found" : "invalid_argument", bad.message};
  return std::nullopt;
}

}  // namespace kvl::worker
