// Updates to JSON bodies and server-sent events.
#include <time.h>

#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cstdio>

#include "worker/api.h"
#include "worker/metadata.h"
#include "worker/tokenizer.h"

namespace kvl::worker {
namespace {

namespace json = boost::json;

double ms(std::int64_t ns) { return static_cast<double>(ns) / 1e6; }

std::string event(const json::value& value) { return "data: " + json::serialize(value) + "\n\n"; }

std::string text_of(const std::vector<OutputToken>& output, std::size_t from = 0) {
  std::vector<std::int32_t> tokens;
  for (std::size_t i = from; i < output.size(); ++i) tokens.push_back(output[i].token);
  return decode_tokens(tokens);
}

json::object figures_object(const Figures& figures) {
  return {{"bytes_moved", figures.bytes_moved},       {"pages_moved", figures.pages_moved},
          {"pages_verified", figures.pages_verified}, {"pages_wrong", figures.pages_wrong},
          {"waited_ms", ms(figures.waited_ns)},       {"handoff_ms", ms(figures.handoff_ns)},
          {"exposed_ms", ms(figures.exposed_ns)}};
}

std::string hex(std::uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

std::string error_body(const ApiError& error) {
  return json::serialize(json::object{{"error", json::object{{"message", error.message},
                                                             {"type", error.type},
                                                             {"code", error.http_status}}}});
}

ApiError error_of(const Status& status, std::string_view reason) {
  ApiError error;
  error.type = to_string(status.code());
  error.message = status.context();
  if (!reason.empty()) error.message += ": " + std::string(reason);
  switch (status.code()) {
    case Code::invalid_argument:
    case Code::unsupported:
      error.http_status = 400;
      break;
    case Code::not_found:
      error.http_status = 404;
      break;
    case Code::exhausted:
    case Code::unavailable:
    case Code::peer_lost:
      error.http_status = 503;
      break;
    case Code::timed_out:
      error.http_status = 504;
      break;
    case Code::permission:
      error.http_status = 403;
      break;
    case Code::aborted:
      error.http_status = 499;  // as nginx has it: the client asked for the end
      break;
    default:
      error.http_status = 500;
  }
  return error;
}

// How a part looks in each form.
struct Answer::Render {
  const Answer& answer;

  json::value finish(const Part& part, bool native) const {
    if (!part.done) return nullptr;
    const char* const type = part.stopped ? "stop" : "length";
    if (!native) return type;
    if (part.stopped) return json::object{{"type", type}, {"matched", kEos}};
    return json::object{{"type", type}, {"length", part.output.size()}};
  }

  json::object generate(const Part& part) const {
    json::array ids;
    json::array logprobs;
    json::array digests;
    for (const OutputToken& token : part.output) {
      ids.emplace_back(token.token);
      // A double holds every float exactly, and its text is read back to the same bits.
      logprobs.emplace_back(json::array{static_cast<double>(token.logprob), token.token, nullptr});
      digests.emplace_back(hex(token.digest));
    }
    json::object meta{{"id", part.rid},
                      {"finish_reason", finish(part, true)},
                      {"prompt_tokens", part.figures.prompt_tokens},
                      {"completion_tokens", part.output.size()},
                      {"cached_tokens", part.figures.cached_tokens}};
    if (answer.logprobs_) meta["output_token_logprobs"] = std::move(logprobs);
    if (part.digests) meta["logits_digests"] = std::move(digests);
    if (part.done) {
      meta["e2e_latency"] = part.seconds;
      meta["kvlane"] = figures_object(part.figures);
    }
    return {{"text", text_of(part.output)}, {"output_ids", std::move(ids)}, {"meta_info", meta}};
  }

  json::object openai_head(const char* object) const {
    return {{"id", answer.rid_},
            {"object", object},
            {"created", answer.created_s_},
            {"model", answer.model_}};
  }

  json::value logprobs(const Part& part, std::size_t from) const {
    if (!answer.logprobs_) return nullptr;
    json::array tokens;
    json::array values;
    json::array content;
    for (std::size_t i = from; i < part.output.size(); ++i) {
      const std::string text = decode_tokens(std::vector{part.output[i].token});
      const auto value = static_cast<double>(part.output[i].logprob);
      tokens.emplace_back(text);
      values.emplace_back(value);
      content.emplace_back(json::object{{"token", text}, {"logprob", value}});
    }
    if (answer.form_ == ApiForm::chat) return json::object{{"content", std::move(content)}};
    return json::object{{"tokens", std::move(tokens)}, {"token_logprobs", std::move(values)}};
  }

  // `from`: the first token that has not been said yet.
  json::object choice(std::size_t index, std::size_t from, bool stream) const {
    const Part& part = answer.parts_[index];
    const std::string text = text_of(part.output, from);
    json::object choice{{"index", index},
                        {"finish_reason", finish(part, false)},
                        {"logprobs", logprobs(part, from)}};
    if (answer.form_ == ApiForm::completion) {
      choice["text"] = text;
    } else {
      json::object message{{"content", text}};
      if (from == 0) message["role"] = "assistant";
      choice[stream ? "delta" : "message"] = std::move(message);
    }
    return choice;
  }

  json::object usage() const {
    std::uint64_t prompt = 0;
    std::uint64_t output = 0;
    for (const Part& part : answer.parts_) {
      prompt += part.figures.prompt_tokens;
      output += part.output.size();
    }
    return {{"prompt_tokens", prompt},
            {"completion_tokens", output},
            {"total_tokens", prompt + output}};
  }
};

Answer::Answer(const Call& call, std::string model)
    : form_(call.form),
      list_(call.list),
      logprobs_(call.logprobs),
      usage_(call.usage),
      model_(std::move(model)),
      rid_(call.rid),
      created_s_(::time(nullptr)),
      started_ns_(wall_clock_ns()),
      left_(call.requests.size()) {
  for (const Request& request : call.requests) {
    Part& part = parts_.emplace_back();
    part.rid = request.rid;
    part.digests = request.digests;
  }
}

void Answer::take(std::size_t index, const Update& update) {
  Part& part = parts_[index];
  part.output.insert(part.output.end(), update.tokens.begin(), update.tokens.end());
  if (!update.done) return;
  part.done = true;
  part.stopped = update.stopped;
  part.figures = update.figures;
  part.seconds = static_cast<double>(wall_clock_ns() - started_ns_) / 1e9;
  --left_;
  if (update.status.ok() || error_) return;
  error_ = error_of(update.status, update.reason);
  error_->of_peer = update.of_peer;
}

std::string Answer::body() const {
  const Render render{*this};
  if (form_ == ApiForm::generate) {
    if (!list_) return json::serialize(render.generate(parts_[0]));
    json::array list;
    for (const Part& part : parts_) list.emplace_back(render.generate(part));
    return json::serialize(list);
  }
  json::object body =
      render.openai_head(form_ == ApiForm::chat ? "chat.completion" : "text_completion");
  json::array choices;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    choices.emplace_back(render.choice(i, 0, false));
  }
  body["choices"] = std::move(choices);
  body["usage"] = render.usage();
  return json::serialize(body);
}

std::string Answer::events(std::size_t index, const Update& update) const {
  const Render render{*this};
  const Part& part = parts_[index];
  std::string out;
  if (!update.status.ok()) {
    out = "data: " + error_body(error_of(update.status, update.reason)) + "\n\n";
  } else if (form_ == ApiForm::generate) {
    json::object chunk = render.generate(part);
    if (list_ || parts_.size() > 1) chunk["index"] = index;
    out = event(chunk);
  } else if (!update.tokens.empty() || update.done) {
    json::object chunk =
        render.openai_head(form_ == ApiForm::chat ? "chat.completion.chunk" : "text_completion");
    chunk["choices"] =
        json::array{render.choice(index, part.output.size() - update.tokens.size(), true)};
    out = event(chunk);
  }
  if (!done()) return out;
  if (usage_ && form_ != ApiForm::generate) {
    json::object chunk =
        render.openai_head(form_ == ApiForm::chat ? "chat.completion.chunk" : "text_completion");
    chunk["choices"] = json::array{};
    chunk["usage"] = render.usage();
    out += event(chunk);
  }
  return out + "data: [DONE]\n\n";
}

}  // namespace kvl::worker
