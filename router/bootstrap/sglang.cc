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

constexpr std::string_view kRankPrefix = "sglang/rank/";
constexpr int kTriesMax = 4;  // of a rank that is put at two servers at once

std::string rank_key(std::uint32_t dp, std::uint32_t cp, std::uint32_t tp, std::uint32_t pp) {
  return std::string(kRankPrefix) + std::to_string(dp) + "." + std::to_string(cp) + "." +
         std::to_string(tp) + "." + std::to_string(pp);
}

std::string room_key(std::uint64_t room) { return "sglang/room/" + std::to_string(room); }

template <typename Number = std::uint32_t>
std::optional<Number> number_in(std::string_view text) {
  Number number = 0;
  const auto [end, errc] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (errc != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// The parts of a rank's record, as views into it.
struct RankValue {
  std::uint64_t ranks_expected = 0;
  std::string_view shape, address;
};

std::optional<RankValue> split_value(std::string_view value) {
  const std::size_t first = value.find('\n');
  if (first == std::string_view::npos) return std::nullopt;
  const std::size_t second = value.find('\n', first + 1);
  if (second == std::string_view::npos) return std::nullopt;
  const auto ranks_expected = number_in<std::uint64_t>(value.substr(0, first));
  if (!ranks_expected.has_value()) return std::nullopt;
  return RankValue{*ranks_expected, value.substr(first + 1, second - first - 1),
                   value.substr(second + 1)};
}

}  // namespace

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
  const std::uint32_t tp_size = need("attn_tp_size");
  const std::uint32_t cp_size = need("attn_cp_size", 1);
  const std::uint32_t pp_size = need("pp_size", 1);
  // One attention group of data parallelism, or whole engines side by side.
  const bool system = need("system_dp_size", 1) > 1;
  const std::uint32_t dp_size = system ? need("system_dp_size", 1) : need("attn_dp_size", 1);
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
  if (wrong.empty() &&
      !(fits(dp, dp_size) && fits(cp, cp_size) && fits(tp, tp_size) && fits(pp, pp_size))) {
    wrong = "a rank is not below its size";
  }
  if (wrong.empty() && port > 65535) wrong = "missing or wrong: rank_port";
  if (!wrong.empty()) return false;
  rank.key = rank_key(dp, cp, tp, pp);
  rank.ranks_expected = std::uint64_t{dp_size} * cp_size * tp_size * pp_size;
  rank.shape = "{\"attn_tp_size\":" + std::to_string(tp_size) +
               ",\"attn_cp_size\":" + std::to_string(cp_size) +
               ",\"dp_size\":" + std::to_string(dp_size) +
               ",\"pp_size\":" + std::to_string(pp_size) + shape_details(*object) + "}";
  rank.address = json::serialize(json::object{{"rank_ip", *ip}, {"rank_port", port}});
  return true;
}

// What is in the store was written by a server like this one, or by somebody with etcd's password:
// a value without its parts is left out.
Result<SglangTable::Instance> SglangTable::instance() const {
  const Result<std::vector<StoredValue>> records = store_.list(kRankPrefix);
  if (!records.ok()) return records.status();
  Instance found;
  std::uint64_t newest = 0;
  for (const StoredValue& record : *records) {
    const std::optional<RankValue> value = split_value(record.value);
    if (!value.has_value() || record.revision < newest) continue;
    newest = record.revision;
    found.shape = value->shape;
    found.ranks_expected = value->ranks_expected;
  }
  for (const StoredValue& record : *records) {
    const std::optional<RankValue> value = split_value(record.value);
    if (value.has_value() && value->shape == found.shape) {
      ++found.ranks;
    } else {
      found.left_over.push_back(record.key);
    }
  }
  return found;
}

void SglangTable::put_route(std::string_view body, Answered answered) {
  Rank rank;
  std::string wrong;
  if (!read_rank(body, rank, wrong)) return answered(refuse(400, wrong));
  put_rank(std::move(rank), 0, std::move(answered));
}

void SglangTable::put_rank(Rank rank, int tries, Answered answered) {
  const Result<Instance> before = instance();
  if (!before.ok()) return answered(refuse(503, before.status().context()));
  const Result<std::optional<StoredValue>> known = store_.get(rank.key);
  if (!known.ok()) return answered(refuse(503, known.status().context()));
  const bool restarted = before->ranks > 0 && rank.shape != before->shape;
  if (restarted && !known->has_value()) {
    return answered(refuse(400, "this rank's sizes or cache layout differ from those registered"));
  }
  const std::uint64_t expected = known->has_value() ? (*known)->revision : 0;
  const std::string key = rank.key;
  std::string value = std::to_string(rank.ranks_expected) + "\n" + rank.shape + "\n" + rank.address;
  store_.put(key, std::move(value), kNoLease, expected,
             [this, restarted, tries, rank = std::move(rank),
              answered = std::move(answered)](const Status& put) mutable {
               if (put.code() == Code::aborted && tries < kTriesMax) {
                 return put_rank(std::move(rank), tries + 1, std::move(answered));
               }
               if (!put.ok()) return answered(refuse(503, put.context()));
               if (restarted) drop_left_over();
               answered(SglangAnswer{});
             });
}

// Ranks of the shape before do not count any more; now they go.
void SglangTable::drop_left_over() {
  const Result<Instance> now = instance();
  if (!now.ok()) return;
  log(LogLevel::warning, "bootstrap.instance_changed",
      {{"ranks_dropped", now->left_over.size()},
       {"code", to_string(Code::not_found)},
       {"hint",
        "nothing, if prefill was restarted with other sizes; else two instances share a port"}});
  for (const std::string& key : now->left_over) store_.erase(key, [](const Status&) {});
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
  const Result<Instance> there = instance();
  if (!there.ok()) return refuse(503, there.status().context());
  if (!there->ready()) return refuse(503, "not all prefill ranks are registered yet");
  if (std::all_of(wanted.begin(), wanted.end(), [](std::int64_t rank) { return rank == -1; })) {
    return {200, there->shape};
  }
  const bool in_range = std::all_of(wanted.begin(), wanted.end(), [](std::int64_t rank) {
    return rank >= 0 && rank < std::int64_t{kSizeMax};
  });
  if (!in_range) return refuse(404, "no such rank");
  const auto part = [&](std::size_t i) { return static_cast<std::uint32_t>(wanted[i]); };
  const Result<std::optional<StoredValue>> found =
      store_.get(rank_key(part(0), part(1), part(2), part(3)));
  const std::optional<RankValue> value =
      found.ok() && found->has_value() ? split_value((*found)->value) : std::nullopt;
  if (!value.has_value() || value->shape != there->shape) return refuse(404, "no such rank");
  return {200, std::string(value->address)};
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

void SglangTable::register_dp_rank(std::string_view body, Answered answered) {
  expire_rooms();
  const std::optional<json::object> object = parse_object(body);
  const json::value* const room = object ? object->if_contains("bootstrap_room") : nullptr;
  const json::value* const rank = object ? object->if_contains("dp_rank") : nullptr;
  if (room == nullptr || rank == nullptr) {
    return answered(refuse(400, "missing or wrong: bootstrap_room, dp_rank"));
  }
  json::error_code bad_room, bad_rank;
  const auto room_number = room->to_number<std::uint64_t>(bad_room);
  const auto dp_rank = rank->to_number<std::uint32_t>(bad_rank);
  if (bad_room || bad_rank) {
    return answered(refuse(400, "missing or wrong: bootstrap_room, dp_rank"));
  }
  if (room_deadlines_.size() >= options_.records_max) {
    return answered(refuse(503, "too many rooms"));
  }
  const std::int64_t deadline = clock_.now_ns() + std::int64_t{options_.dp_rank_ttl_ms} * 1'000'000;
  rooms_[room_number] = {dp_rank, deadline};
  room_deadlines_.emplace_back(deadline, room_number);
  if (!store_.health().shared) return answered(SglangAnswer{});
  share_room(room_number, dp_rank, std::move(answered));
}

// What goes wrong here costs the other servers this room, and is the store's to report: this server
// knows it, and the request must not fail for it.
void SglangTable::share_room(std::uint64_t room, std::uint32_t dp_rank, Answered answered) {
  const std::int64_t now = clock_.now_ns();
  if (room_lease_ == kNoLease || now >= room_lease_until_ns_) {
    const std::int64_t until = now + std::int64_t{options_.dp_rank_ttl_ms} * 1'000'000 / 8;
    return store_.grant(options_.dp_rank_ttl_ms,
                        [this, room, dp_rank, until,
                         answered = std::move(answered)](const Result<LeaseId>& lease) mutable {
                          if (!lease.ok()) return answered(SglangAnswer{});
                          room_lease_ = *lease;
                          room_lease_until_ns_ = until;
                          put_room(room, dp_rank, std::move(answered));
                        });
  }
  put_room(room, dp_rank, std::move(answered));
}

void SglangTable::put_room(std::uint64_t room, std::uint32_t dp_rank, Answered answered) {
  const std::string key = room_key(room);
  const Result<std::optional<StoredValue>> known = store_.get(key);
  const std::uint64_t expected = known.ok() && known->has_value() ? (*known)->revision : 0;
  store_.put(key, std::to_string(dp_rank), room_lease_, expected,
             [this, answered = std::move(answered)](const Status& put) {
               if (put.code() == Code::not_found) room_lease_ = kNoLease;
               answered(SglangAnswer{});
             });
}

std::optional<std::uint32_t> SglangTable::shared_room(std::uint64_t room) const {
  if (!store_.health().shared) return std::nullopt;
  const Result<std::optional<StoredValue>> record = store_.get(room_key(room));
  if (!record.ok() || !record->has_value()) return std::nullopt;
  return number_in((*record)->value);
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
    if (entry != rooms_.end()) {
      found[std::to_string(room)] = entry->second.dp_rank;
    } else if (const std::optional<std::uint32_t> shared = shared_room(room)) {
      found[std::to_string(room)] = *shared;
    }
  }
  return {200, json::serialize(found)};
}

}  // namespace kvl::bootstrap
