// etcd's JSON, version 3, as its gateway speaks it: bytes as base64, 64-bit numbers as text.
// Requests out, answers in; no sockets.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/status.h"

namespace kvl::bootstrap::etcd {

struct KeyValue {
  std::string key, value;
  std::uint64_t revision = 0;  // of the last change
  std::uint64_t lease = 0;
};

// "a…" up to the first key that does not begin with the prefix.
std::string range_end(std::string_view prefix);

struct RangeRequest {
  std::string_view key, end;   // end "": one key
  std::uint32_t limit = 0;     // 0: all
  std::uint64_t revision = 0;  // 0: now
  bool keys_only = false;
};
std::string encode_range(const RangeRequest& request);
// Puts when the key's revision is `expected` (0: when it does not exist), else reads it.
std::string encode_put_if(const KeyValue& put, std::uint64_t expected);
std::string encode_delete(std::string_view key);
std::string encode_grant(std::uint64_t lease, std::uint64_t ttl_s);
std::string encode_lease(std::uint64_t lease);
std::string encode_user(std::string_view name, std::string_view password);
// Changes of all keys in [key, end) from a revision on.
std::string encode_watch(std::string_view key, std::string_view end, std::uint64_t from_revision);

// Every answer begins with it.
struct Header {
  std::uint64_t cluster = 0;
  std::uint64_t revision = 0;
};
struct RangeAnswer {
  Header header;
  std::vector<KeyValue> values;
  bool more = false;
};
struct PutAnswer {
  Header header;
  bool put = false;
  std::optional<KeyValue> there;  // of a put that did not happen; nothing: the key does not exist
};
struct WatchEvent {
  bool deleted = false;
  KeyValue now;  // deleted: key and revision only
};
struct WatchAnswer {
  Header header;
  bool created = false, canceled = false;
  std::uint64_t compact_revision = 0;  // canceled: what was asked for is older than this
  std::string error;                   // "" none
  std::vector<WatchEvent> events;
};

// corrupt: not what etcd says.
Result<Header> decode_header(std::string_view body);
Result<RangeAnswer> decode_range(std::string_view body);
Result<PutAnswer> decode_put_if(std::string_view body);
Result<std::uint64_t> decode_keep_alive(std::string_view body);  // seconds; 0: the lease has ended
Result<std::string> decode_token(std::string_view body);
Result<WatchAnswer> decode_watch(std::string_view line);

// An answer other than 200: gRPC's code and what etcd says.
struct Failure {
  int grpc_code = 2;
  std::string message;
};
Failure decode_failure(std::string_view body);

}  // namespace kvl::bootstrap::etcd
