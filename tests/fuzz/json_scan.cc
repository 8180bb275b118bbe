// The scan of a request's body against a JSON parser: the same bodies are valid, the same fields
// are found, and what is spliced in gives a valid body.
#include <boost/json.hpp>

#include "router/http/body_scan.h"
#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {
namespace {

namespace json = boost::json;

// Depth as ours; UTF-8 is the worker's to judge, so it is not judged here either.
json::value parse(std::string_view text, json::error_code& failed) {
  json::parse_options options;
  options.max_depth = http::kJsonDepthMax - 1;
  options.allow_invalid_utf8 = true;
  return json::parse(text, failed, {}, options);
}

// Boost refuses some JSON for its own reasons: lone surrogates, numbers beyond its exponents.
bool beyond_boost(std::string_view text) {
  if (text.find("\\u") != std::string_view::npos) return true;
  std::size_t digits = 0;
  for (const char c : text) {
    digits = c >= '0' && c <= '9' ? digits + 1 : 0;
    if (digits > 8) return true;
  }
  return text.find_first_of("eE") != std::string_view::npos;
}

bool is_session_key(std::string_view key) {
  return key.starts_with("bootstrap_") || key == "routed_dp_rank" ||
         key == "disagg_prefill_dp_rank" || key == "data_parallel_rank";
}

std::uint32_t prompts_of(const json::value& value) {
  if (!value.is_array() || value.get_array().empty()) return 1;
  const json::value& first = value.get_array().front();
  if (!first.is_string() && !first.is_array()) return 1;
  return static_cast<std::uint32_t>(value.get_array().size());
}

void compare(std::string_view body, const http::BodyScan& scan, const json::object& object) {
  require(scan.has_fields == !object.empty(), "an empty object needs no comma");
  const json::value* const stream = object.if_contains("stream");
  const bool streams = stream != nullptr && stream->is_bool() && stream->get_bool();
  require(scan.stream == streams || (stream != nullptr && !stream->is_bool()), "stream");
  bool session = false;
  for (const auto& [key, value] : object) session |= is_session_key(key);
  require(session == !scan.session_key.empty(), "keys that name a session are found");
  if (const json::value* const rid = object.if_contains("rid")) {
    json::error_code failed;
    require(parse(scan.rid, failed) == *rid && !failed, "the rid as it was written");
  } else {
    require(scan.rid.empty(), "no rid");
  }
  int lists = 0;
  for (const char* name : {"prompt", "text", "input_ids"}) lists += object.contains(name) ? 1 : 0;
  for (const char* name : {"prompt", "text", "input_ids"}) {
    const json::value* const value = object.if_contains(name);
    if (value == nullptr || lists != 1) continue;
    const std::uint32_t wanted = std::max(1U, prompts_of(*value));
    require(scan.prompts == wanted, "as many prompts as there are");
  }
  require(scan.n >= 1 && scan.n <= http::BodyScan::kFactorMax, "n is bounded");
  // What the router does: its fields before the last brace.
  std::string spliced(body.substr(0, scan.last_brace));
  spliced.append(scan.has_fields ? "," : "").append("\"bootstrap_room\":7}");
  json::error_code failed;
  const json::value again = parse(spliced, failed);
  require(!failed && again.at("bootstrap_room").as_int64() == 7, "a spliced body is valid");
  require(again.get_object().size() == object.size() + (object.contains("bootstrap_room") ? 0 : 1),
          "and has every field");
}

// Keys that come twice: which one counts is compared by the scan's own tests.
bool repeats_a_key(std::string_view body, const json::object& object) {
  for (const char* name : {"stream", "rid", "prompt", "text", "input_ids"}) {
    const std::string quoted = "\"" + std::string(name) + "\"";
    const std::size_t first = body.find(quoted);
    if (first != std::string_view::npos && body.find(quoted, first + 1) != std::string_view::npos) {
      return true;
    }
  }
  return object.empty() && body.find('"') != std::string_view::npos;
}

}  // namespace

void fuzz_json_scan(Bytes input) {
  if (input.size() > 64 << 10) return;
  const std::string_view body = text_of(input);
  const http::BodyScan scan = http::scan_body(body);
  require(scan.error_offset <= body.size(), "an error is somewhere in the body");
  if (scan.error == nullptr) {
    require(scan.last_brace < body.size() && body[scan.last_brace] == '}', "the last brace");
  }
  json::error_code failed;
  const json::value value = parse(body, failed);
  const bool valid = !failed && value.is_object();
  if (valid) require(scan.error == nullptr, "what Boost.JSON accepts is accepted");
  if (!valid && !beyond_boost(body)) require(scan.error != nullptr, "what it refuses is refused");
  if (valid && !repeats_a_key(body, value.get_object())) compare(body, scan, value.get_object());
}

Seeds seeds_json_scan() {
  return {seed(R"({"text":"hi","stream":true,"sampling_params":{"n":2},"rid":"a"})"),
          seed(R"({"prompt":["a","b","c"],"n":3,"bootstrap_host":"x"})"),
          seed(R"({"input_ids":[[1,2],[3]],"rid":["x","y"],"stream":false})"),
          seed(R"( {"messages":[{"role":"user","content":"q\n\u00e9\"\\"}],"x":-1.5e3} )"),
          seed("{}"),
          seed(R"({"a":[{"b":[[],{}]},null,true],"bootstrap\u005froom":1})")};
}

}  // namespace kvl::fuzz
