// JSON text to records and back. Every field is bounded: the text comes from the network.
#include "kvcache/bootstrap/wire.h"

#include <algorithm>
#include <boost/json.hpp>
#include <limits>
#include <optional>

#include "kvcache/bootstrap/base64.h"

namespace kvl {

std::string_view to_string(EngineRole role) {
  switch (role) {
    case EngineRole::prefill:
      return "prefill";
    case EngineRole::decode:
      return "decode";
    case EngineRole::both:
      return "both";
  }
  return "unknown";
}

namespace bootstrap {
namespace {

namespace json = boost::json;

std::optional<EngineRole> parse_role(std::string_view text) {
  for (const EngineRole role : {EngineRole::prefill, EngineRole::decode, EngineRole::both}) {
    if (text == to_string(role)) return role;
  }
  return std::nullopt;
}

bool is_name(std::string_view text) {
  return text.size() <= kNameBytesMax && std::all_of(text.begin(), text.end(), [](char c) {
           return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
         });
}

// Reads fields of one object; the first that is missing or wrong is remembered.
class Fields {
 public:
  explicit Fields(const json::object& object) : object_(object) {}

  std::string text(const char* name) {
    const json::value* const value = object_.if_contains(name);
    if (value != nullptr && value->is_string()) return std::string(value->get_string());
    return wrong(name), std::string{};
  }
  std::uint64_t number(const char* name, std::uint64_t max) {
    const json::value* const value = object_.if_contains(name);
    json::error_code failed;
    const auto number = value == nullptr ? 0 : value->to_number<std::uint64_t>(failed);
    if (value == nullptr || failed || number > max) return wrong(name), 0;
    return number;
  }
  std::uint32_t number32(const char* name) {
    return static_cast<std::uint32_t>(number(name, std::numeric_limits<std::uint32_t>::max()));
  }
  void wrong(const char* name) {
    if (wrong_ == nullptr) wrong_ = name;
  }
  // The context of a Status is a literal, and so are the names.
  Status status() const {
    return wrong_ == nullptr ? Status{} : Status{Code::invalid_argument, wrong_};
  }

 private:
  const json::object& object_;
  const char* wrong_ = nullptr;
};

Result<json::object> parse_object(std::string_view text) {
  json::error_code failed;
  json::value value = json::parse(text, failed);
  if (failed || !value.is_object()) return Status{Code::invalid_argument, "not a JSON object"};
  return std::move(value.get_object());
}

Status check_version(const json::object& object) {
  const json::value* const version = object.if_contains("version");
  json::error_code failed;
  if (version != nullptr && version->to_number<std::uint64_t>(failed) == kWireVersion && !failed) {
    return {};
  }
  return {Code::unsupported, "the other side speaks another version of the rendezvous"};
}

Result<RankRecord> read_record(const json::object& object) {
  Fields fields(object);
  RankRecord record;
  record.cluster = fields.text("cluster");
  record.instance = fields.text("instance");
  const std::optional<EngineRole> role = parse_role(fields.text("role"));
  if (!role.has_value()) fields.wrong("role");
  record.role = role.value_or(EngineRole::both);
  record.tp_rank = fields.number32("tp_rank");
  record.tp_size = fields.number32("tp_size");
  record.pp_rank = fields.number32("pp_rank");
  record.pp_size = fields.number32("pp_size");
  record.dp_rank = fields.number32("dp_rank");
  record.dp_size = fields.number32("dp_size");
  record.address = fields.text("address");
  record.epoch = fields.number("epoch", std::numeric_limits<std::uint64_t>::max());
  std::optional<std::vector<std::byte>> layout = decode_base64(fields.text("layout"));
  if (!layout.has_value()) fields.wrong("layout");
  KVL_TRY(fields.status());
  record.layout = *std::move(layout);
  KVL_TRY(check_record(record));
  return record;
}

json::object record_object(const RankRecord& record) {
  return {{"cluster", record.cluster},      {"instance", record.instance},
          {"role", to_string(record.role)}, {"tp_rank", record.tp_rank},
          {"tp_size", record.tp_size},      {"pp_rank", record.pp_rank},
          {"pp_size", record.pp_size},      {"dp_rank", record.dp_rank},
          {"dp_size", record.dp_size},      {"address", record.address},
          {"epoch", record.epoch},          {"layout", encode_base64(record.layout)}};
}

}  // namespace

Status check_record(const RankRecord& record) {
  if (!is_name(record.cluster)) return {Code::invalid_argument, "cluster"};
  if (record.instance.empty() || !is_name(record.instance)) {
    return {Code::invalid_argument, "instance"};
  }
  if (record.address.empty() || !is_name(record.address)) {
    return {Code::invalid_argument, "address"};
  }
  const auto fits = [](std::uint32_t rank, std::uint32_t size) {
    return size >= 1 && size <= kSizeMax && rank < size;
  };
  if (!fits(record.tp_rank, record.tp_size)) return {Code::invalid_argument, "tp_rank"};
  if (!fits(record.pp_rank, record.pp_size)) return {Code::invalid_argument, "pp_rank"};
  if (!fits(record.dp_rank, record.dp_size)) return {Code::invalid_argument, "dp_rank"};
  if (record.layout.size() > kLayoutBytesMax) return {Code::invalid_argument, "layout"};
  return {};
}

std::string encode_record(const RankRecord& record) {
  return json::serialize(record_object(record));
}

std::string encode_register(const RankRecord& record, std::uint32_t lease_ms) {
  json::object object = record_object(record);
  object["version"] = kWireVersion;
  object["lease_ms"] = lease_ms;
  return json::serialize(object);
}

Result<RegisterRequest> decode_register(std::string_view text) {
  const Result<json::object> object = parse_object(text);
  if (!object.ok()) return object.status();
  KVL_TRY(check_version(*object));
  Result<RankRecord> record = read_record(*object);
  if (!record.ok()) return record.status();
  Fields fields(*object);
  RegisterRequest request{*std::move(record), fields.number32("lease_ms")};
  KVL_TRY(fields.status());
  return request;
}

std::string encode_ranks(const std::vector<std::string>& records, std::int64_t stale_ms) {
  std::string out = "{\"version\":" + std::to_string(kWireVersion);
  if (stale_ms >= 0) out += ",\"stale_ms\":" + std::to_string(stale_ms);
  out += ",\"ranks\":[";
  for (const std::string& record : records) {
    if (&record != &records.front()) out += ',';
    out += record;
  }
  return out + "]}";
}

Result<std::vector<RankRecord>> decode_ranks(std::string_view text) {
  const Result<json::object> object = parse_object(text);
  if (!object.ok()) return object.status();
  KVL_TRY(check_version(*object));
  const json::value* const list = object->if_contains("ranks");
  if (list == nullptr || !list->is_array()) return Status{Code::invalid_argument, "ranks"};
  std::vector<RankRecord> records;
  for (const json::value& value : list->get_array()) {
    if (!value.is_object()) return Status{Code::invalid_argument, "ranks"};
    Result<RankRecord> record = read_record(value.get_object());
    if (!record.ok()) return record.status();
    records.push_back(*std::move(record));
  }
  return records;
}

std::string encode_lease(const Lease& lease) {
  return json::serialize(json::object{{"lease", lease.id}, {"lease_ms", lease.lease_ms}});
}

Result<Lease> decode_lease(std::string_view text) {
  const Result<json::object> object = parse_object(text);
  if (!object.ok()) return object.status();
  Fields fields(*object);
  const Lease lease{fields.number("lease", std::numeric_limits<std::uint64_t>::max()),
                    fields.number32("lease_ms")};
  KVL_TRY(fields.status());
  return lease;
}

std::string encode_error(std::string_view code, std::string_view message) {
  return json::serialize(json::object{{"error", {{"code", code}, {"message", message}}}});
}

std::string decode_error(std::string_view text) {
  const Result<json::object> object = parse_object(text);
  if (!object.ok()) return {};
  const json::value* const error = object->if_contains("error");
  if (error == nullptr || !error->is_object()) return {};
  return Fields(error->get_object()).text("code");
}

std::uint64_t epoch_of(std::string_view record_json) {
  const Result<json::object> object = parse_object(record_json);
  return object.ok() ? Fields(*object).number("epoch", std::numeric_limits<std::uint64_t>::max())
                     : 0;
}

}  // namespace bootstrap
}  // namespace kvl
