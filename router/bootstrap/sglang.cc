// The field names, defaults and answers are those of SGLang's own bootstrap server.
#include "router/bootstrap/sglang.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <charconv>
#include <limits>
#include <optional>

#include "kvcache/bootstrap/wire.h"
#include "kvl/log.h"
#include "router/http/url.h"

namespace kvl::bootstrap {
namespace {

namespace json = boost::json;

std::optional<json::object> parse_object(std::string_view text) {
  json::error_code failed;
  json::value value = json::parse(text, failed);
  if (failed || !value.is_object()) return std::nullopt;
  return std::move(value.get_object());
}

// A number below 2^32 under `name`; `fallback` when it is absent or null.
std::optional<std::uint32_t> number(const json::object& object, const char* name,
                                    std::optional<std::uint32_t> fallback = std::nullopt) {
  const json::value* const value = object.if_contains(name);
  if (value == nullptr || value->is_null()) return fallback;
  json::error_code failed;
  const auto result = value->to_number<std::uint32_t>(failed);
  return failed ? std::nullopt : std::optional(result);
}

// Members that are handed on as they came.
std::string pass_on(const json::object& object, const char* name) {
  const json::value* const value = object.if_contains(name);
  return std::string(",\"") + name +
         "\":" + (value == nullptr ? std::string("null") : json::serialize(*value));
}

constexpr const char* kAlwaysPassed[] = {"page_size",
                                         "kv_cache_dtype",
                                         "enable_dsa_cache_layer_split",
                                         "enable_kv_cache_sharding",
                                         "prefill_http_port",
                                         "decode_allocation_policy"};
constexpr const char* kPassedWhenThere[] = {"kv_layout", "dsv41_spec_layout"};

std::string shape_details(const json::object& object) {
  std::string out;
  for (const char* name : kAlwaysPassed) out += pass_on(object, name);
  for (const char* name : kPassedWhenThere) {
    const json::value* const value = object.if_contains(name);
    if (value != nullptr && !value->is_null()) out += pass_on(object, name);
  }
  const json::value* const balance = object.if_contains("load_balance_method");
  const bool follows = balance == nullptr || balance->is_null() ||
                       (balance->is_string() && balance->get_string() == "follow_bootstrap_room");
  out += std::string(",\"follow_bootstrap_room\":") + (follows ? "true" : "false");
  return out;
}

SglangAnswer refuse(int status, std::string why) { return {status, std::move(why)}; }

}  // namespace

std::uint64_t SglangTable::ranks_expected() const {
  return std::uint64_t{shape_.dp_size} * shape_.cp_size * shape_.tp_size * shape_.pp_size;
}

bool SglangTable::read_rank(std::string_view body, Rank& rank, std::string& wrong) {
  const std::optional<json::object> object = parse_object(body);
  if (!object.has_value()) {
    wrong = "the body must be a JSON object";
    return false;
  }
  const auto need = [&](const char* name, std::optional<std::uint32_t> fallback = std::nullopt) {
    const std::optional<std::uint32_t> value = number(*object, name, fallback);
    if (!value.has_value() && wrong.empty()) wrong = std::string("missing or wrong: ") + name;
    return value.value_or(0);
  };
  Shape& shape = rank.shape;
  shape.tp_size = need("attn_tp_size");
  shape.cp_size = need("attn_cp_size", 1);
  shape.pp_size = need("pp_size", 1);
  // One attention group of data parallelism, or whole engines side by side.
  const bool system = need("system_dp_size", 1) > 1;
  shape.dp_size = system ? need("system_dp_size", 1) : need("attn_dp_size", 1);
  const std::uint32_t dp = system ? need("system_dp_rank", 0) : need("attn_dp_rank", 0);
  const std::uint32_t cp = need("attn_cp_rank", 0);
  const std::uint32_t tp = need("attn_tp_rank");
  const std::uint32_t pp = need("pp_rank", 0);
  const std::uint32_t port = need("rank_port");
  const json::value* const ip = object->if_contains("rank_ip");
  if (wrong.empty() && (ip == nullptr || !ip->is_string() || ip->get_string().size() > 256)) {
    wrong = "missing or wrong: rank_ip";
  }
  const auto fits = [](std::uint32_t at, std::uint32_t size) {
    return size >= 1 && size <= kSizeMax && at < size;
  };
  if (wrong.empty() && !(fits(dp, shape.dp_size) && fits(cp, shape.cp_size) &&
                         fits(tp, shape.tp_size) && fits(pp, shape.pp_size))) {
    wrong = "a rank is not below its size";
  }
  if (wrong.empty() && port > 65535) wrong = "missing or wrong: rank_port";
  if (!wrong.empty()) return false;
  rank.key = {dp, cp, tp, pp};
  rank.address = json::serialize(json::object{{"rank_ip", *ip}, {"rank_port", port}});
  shape.details = shape_details(*object);
  return true;
}

SglangAnswer SglangTable::put_route(std::string_view body) {
  Rank rank;
  std::string wrong;
  if (!read_rank(body, rank, wrong)) return refuse(400, wrong);
  if (!ranks_.empty() && rank.shape != shape_) {
    if (!ranks_.contains(rank.key)) {
      return refuse(400, "this rank's sizes or cache layout differ from those registered");
    }
    log(LogLevel::warning, "bootstrap.instance_changed", {{"ranks_dropped", ranks_.size()}});
    ranks_.clear();
  }
  if (!ranks_.contains(rank.key) && ranks_.size() >= options_.records_max) {
    return refuse(503, "too many ranks");
  }
  shape_ = std::move(rank.shape);
  ranks_[rank.key] = std::move(rank.address);
  return {};
}

SglangAnswer SglangTable::get_route(std::string_view query) const {
  std::array<std::int64_t, 4> wanted{};
  constexpr const char* kNames[] = {"prefill_dp_rank", "prefill_cp_rank", "target_tp_rank",
                                    "target_pp_rank"};
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const std::string text = http::query_value(query, kNames[i]).value_or("");
    const auto [end, errc] = std::from_chars(text.data(), text.data() + text.size(), wanted[i]);
    if (errc != std::errc{} || end != text.data() + text.size()) {
      return refuse(400, std::string("missing or wrong: ") + kNames[i]);
    }
  }
  if (!ready()) return refuse(503, "not all prefill ranks are registered yet");
  if (std::all_of(wanted.begin(), wanted.end(), [](std::int64_t rank) { return rank == -1; })) {
    return {200, "{\"attn_tp_size\":" + std::to_string(shape_.tp_size) +
                     ",\"attn_cp_size\":" + std::to_string(shape_.cp_size) +
                     ",\"dp_size\":" + std::to_string(shape_.dp_size) +
                     ",\"pp_size\":" + std::to_string(shape_.pp_size) + shape_.details + "}"};
  }
  const bool in_range = std::all_of(wanted.begin(), wanted.end(), [](std::int64_t rank) {
    return rank >= 0 && rank < std::int64_t{kSizeMax};
  });
  const auto part = [&](std::size_t i) { return static_cast<std::uint32_t>(wanted[i]); };
  const auto found = in_range ? ranks_.find(Key{part(0), part(1), part(2), part(3)}) : ranks_.end();
  if (found == ranks_.end()) return refuse(404, "no such rank");
  return {200, found->second};
}

void SglangTable::expire_rooms() {
  const std::int64_t now = clock_.now_ns();
  while (!room_deadlines_.empty() && room_deadlines_.front().first <= now) {
    const auto [deadline, room] = room_deadlines_.front();
    room_deadlines_.pop_front();
    // A room that was registered again has a later deadline, further back in the queue.
    const auto entry = rooms_.find(room);
    if (entry != rooms_.end() && entry->second.deadline_ns == deadline) rooms_.erase(entry);
  }
}

SglangAnswer SglangTable::register_dp_rank(std::string_view body) {
  expire_rooms();
  const std::optional<json::object> object = parse_object(body);
  const json::value* const room = object ? object->if_contains("bootstrap_room") : nullptr;
  const json::value* const rank = object ? object->if_contains("dp_rank") : nullptr;
  if (room == nullptr || rank == nullptr) {
    return refuse(400, "missing or wrong: bootstrap_room, dp_rank");
  }
  json::error_code bad_room, bad_rank;
  const auto room_number = room->to_number<std::uint64_t>(bad_room);
  const auto dp_rank = rank->to_number<std::uint32_t>(bad_rank);
  if (bad_room || bad_rank) return refuse(400, "missing or wrong: bootstrap_room, dp_rank");
  if (room_deadlines_.size() >= options_.records_max) return refuse(503, "too many rooms");
  const std::int64_t deadline = clock_.now_ns() + std::int64_t{options_.dp_rank_ttl_ms} * 1'000'000;
  rooms_[room_number] = {dp_rank, deadline};
  room_deadlines_.emplace_back(deadline, room_number);
  return {};
}

SglangAnswer SglangTable::query_dp_ranks(std::string_view body) {
  expire_rooms();
  const std::optional<json::object> object = parse_object(body);
  const json::value* const list = object ? object->if_contains("bootstrap_rooms") : nullptr;
  if (list == nullptr || !list->is_array()) return refuse(400, "missing or wrong: bootstrap_rooms");
  json::object found;
  for (const json::value& value : list->get_array()) {
    json::error_code bad;
    const auto room = value.to_number<std::uint64_t>(bad);
    if (bad) return refuse(400, "missing or wrong: bootstrap_rooms");
    const auto entry = rooms_.find(room);
    if (entry != rooms_.end()) found[std::to_string(room)] = entry->second.dp_rank;
  }
  return {200, json::serialize(found)};
}

}  // namespace kvl::bootstrap
