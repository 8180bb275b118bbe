// Boost.JSON in both directions. A field that is absent has its zero, as protobuf's JSON has it.
#include "router/bootstrap/etcd_wire.h"

#include <boost/json.hpp>
#include <charconv>
#include <span>

#include "kvcache/bootstrap/base64.h"

namespace kvl::bootstrap::etcd {
namespace {

namespace json = boost::json;

constexpr Status kCorrupt{Code::corrupt, "etcd's answer makes no sense"};

std::string base64(std::string_view bytes) {
  return encode_base64(std::as_bytes(std::span(bytes)));
}

std::string text(std::uint64_t number) { return std::to_string(number); }

// Reads members of one object; remembers whether any of them was wrong.
class Reader {
 public:
  explicit Reader(const json::object& object) : object_(object) {}

  std::uint64_t number(std::string_view name) {
    const json::value* const value = object_.if_contains(name);
    if (value == nullptr) return 0;
    std::uint64_t out = 0;
    if (const json::string* const digits = value->if_string()) {
      const auto [end, errc] = std::from_chars(digits->begin(), digits->end(), out);
      if (errc == std::errc{} && end == digits->end()) return out;
    } else {
      json::error_code failed;
      out = value->to_number<std::uint64_t>(failed);
      if (!failed) return out;
    }
    ok_ = false;
    return 0;
  }
  bool flag(std::string_view name) {
    const json::value* const value = object_.if_contains(name);
    if (value == nullptr) return false;
    if (!value->is_bool()) ok_ = false;
    return value->is_bool() && value->get_bool();
  }
  std::string word(std::string_view name) {
    const json::value* const value = object_.if_contains(name);
    if (value == nullptr) return {};
    if (!value->is_string()) ok_ = false;
    return value->is_string() ? std::string(value->get_string()) : std::string();
  }
  std::string bytes(std::string_view name) {
    const auto decoded = decode_base64(word(name));
    if (!decoded.has_value()) {
      ok_ = false;
      return {};
    }
    return {reinterpret_cast<const char*>(decoded->data()), decoded->size()};
  }
  const json::object* object(std::string_view name) {
    const json::value* const value = object_.if_contains(name);
    if (value == nullptr) return nullptr;
    if (!value->is_object()) ok_ = false;
    return value->if_object();
  }
  // Objects of a list; anything else in it is wrong.
  std::vector<const json::object*> objects(std::string_view name) {
    std::vector<const json::object*> out;
    const json::value* const value = object_.if_contains(name);
    if (value == nullptr) return out;
    if (!value->is_array()) ok_ = false;
    if (!value->is_array()) return out;
    for (const json::value& item : value->get_array()) {
      if (item.is_object()) out.push_back(&item.get_object());
      ok_ = ok_ && item.is_object();
    }
    return out;
  }
  Header header() {
    const json::object* const head = object("header");
    if (head == nullptr) return {};
    Reader reader(*head);
    const Header out{reader.number("cluster_id"), reader.number("revision")};
    ok_ = ok_ && reader.ok();
    return out;
  }
  KeyValue key_value() {
    KeyValue out;
    out.key = bytes("key");
    out.value = bytes("value");
    out.revision = number("mod_revision");
    out.lease = number("lease");
    return out;
  }
  bool ok() const { return ok_; }

 private:
  const json::object& object_;
  bool ok_ = true;
};

// `read` gets the top object of `body` and a reader of it; false: it did not like what it saw.
template <typename Answer, typename Read>
Result<Answer> decode(std::string_view body, Read read) {
  json::error_code failed;
  const json::value value = json::parse(body, failed);
  if (failed || !value.is_object()) return kCorrupt;
  Reader reader(value.get_object());
  Answer answer{};
  if (!read(reader, answer) || !reader.ok()) return kCorrupt;
  return answer;
}

bool read_values(Reader& reader, std::vector<KeyValue>& values) {
  for (const json::object* object : reader.objects("kvs")) {
    Reader item(*object);
    values.push_back(item.key_value());
    if (!item.ok()) return false;
  }
  return true;
}

}  // namespace

std::string range_end(std::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && end.back() == '\xff') end.pop_back();
  if (end.empty()) return std::string(1, '\0');  // everything, in etcd's words
  end.back() = static_cast<char>(end.back() + 1);
  return end;
}

std::string encode_range(const RangeRequest& request) {
  json::object out{{"key", base64(request.key)}};
  if (!request.end.empty()) out["range_end"] = base64(request.end);
  if (request.limit > 0) out["limit"] = text(request.limit);
  if (request.revision > 0) out["revision"] = text(request.revision);
  if (request.keys_only) out["keys_only"] = true;
  return json::serialize(out);
}

std::string encode_put_if(const KeyValue& put, std::uint64_t expected) {
  const std::string key = base64(put.key);
  return json::serialize(json::object{
      {"compare", json::array{json::object{{"key", key},
                                           {"target", "MOD"},
                                           {"result", "EQUAL"},
                                           {"mod_revision", text(expected)}}}},
      {"success",
       json::array{json::object{{"request_put", json::object{{"key", key},
                                                             {"value", base64(put.value)},
                                                             {"lease", text(put.lease)}}}}}},
      {"failure", json::array{json::object{{"request_range", json::object{{"key", key}}}}}}});
}

std::string encode_delete(std::string_view key) {
  return json::serialize(json::object{{"key", base64(key)}});
}

std::string encode_grant(std::uint64_t lease, std::uint64_t ttl_s) {
  return json::serialize(json::object{{"ID", text(lease)}, {"TTL", text(ttl_s)}});
}

std::string encode_lease(std::uint64_t lease) {
  return json::serialize(json::object{{"ID", text(lease)}});
}

std::string encode_user(std::string_view name, std::string_view password) {
  return json::serialize(json::object{{"name", name}, {"password", password}});
}

std::string encode_watch(std::string_view key, std::string_view end, std::uint64_t from_revision) {
  return json::serialize(
      json::object{{"create_request", json::object{{"key", base64(key)},
                                                   {"range_end", base64(end)},
                                                   {"start_revision", text(from_revision)}}}});
}

Result<Header> decode_header(std::string_view body) {
  return decode<Header>(body, [](Reader& reader, Header& out) {
    out = reader.header();
    return true;
  });
}

Result<RangeAnswer> decode_range(std::string_view body) {
  return decode<RangeAnswer>(body, [](Reader& reader, RangeAnswer& out) {
    out.header = reader.header();
    out.more = reader.flag("more");
    return out.header.revision != 0 && read_values(reader, out.values);
  });
}

Result<PutAnswer> decode_put_if(std::string_view body) {
  return decode<PutAnswer>(body, [](Reader& reader, PutAnswer& out) {
    out.header = reader.header();
    out.put = reader.flag("succeeded");
    if (out.header.revision == 0) return false;
    if (out.put) return true;
    for (const json::object* response : reader.objects("responses")) {
      Reader inner(*response);
      const json::object* const range = inner.object("response_range");
      if (range == nullptr) return false;
      Reader found(*range);
      std::vector<KeyValue> values;
      if (!read_values(found, values) || !found.ok()) return false;
      if (!values.empty()) out.there = std::move(values.front());
    }
    return true;
  });
}

Result<std::uint64_t> decode_keep_alive(std::string_view body) {
  return decode<std::uint64_t>(body, [](Reader& reader, std::uint64_t& out) {
    const json::object* const result = reader.object("result");
    if (result == nullptr) return false;
    Reader inner(*result);
    out = inner.number("TTL");
    return inner.ok();
  });
}

Result<std::string> decode_token(std::string_view body) {
  return decode<std::string>(body, [](Reader& reader, std::string& out) {
    out = reader.word("token");
    // It becomes a header's value: nothing that would end the line.
    return !out.empty() && out.find_first_of("\r\n") == std::string::npos && out.size() < 4096;
  });
}

Result<WatchAnswer> decode_watch(std::string_view line) {
  return decode<WatchAnswer>(line, [](Reader& reader, WatchAnswer& out) {
    if (const json::object* const error = reader.object("error")) {
      Reader inner(*error);
      out.error = inner.word("message");
      if (out.error.empty()) out.error = "the watch failed";
      return true;
    }
    const json::object* const result = reader.object("result");
    if (result == nullptr) return false;
    Reader inner(*result);
    out.header = inner.header();
    out.created = inner.flag("created");
    out.canceled = inner.flag("canceled");
    out.compact_revision = inner.number("compact_revision");
    out.error = inner.word("cancel_reason");
    for (const json::object* item : inner.objects("events")) {
      Reader event(*item);
      const json::object* const kv = event.object("kv");
      if (kv == nullptr) return false;
      Reader value(*kv);
      out.events.push_back({event.word("type") == "DELETE", value.key_value()});
      if (!event.ok() || !value.ok()) return false;
    }
    return inner.ok();
  });
}

Failure decode_failure(std::string_view body) {
  Result<Failure> failure = decode<Failure>(body, [](Reader& reader, Failure& out) {
    out.grpc_code = static_cast<int>(reader.number("code"));
    out.message = reader.word("message");
    return true;
  });
  return failure.ok() ? *std::move(failure) : Failure{};
}

}  // namespace kvl::bootstrap::etcd
