// What etcd's gateway says, as its documentation has it.
#include "tests/router/bootstrap/fake_etcd.h"

#include <boost/beast/core/detail/base64.hpp>
#include <cstdio>
#include <utility>

namespace kvl::test {
namespace {

namespace json = boost::json;
namespace base64 = boost::beast::detail::base64;

constexpr std::uint64_t kCluster = 7;
constexpr const char* kLeaseSeconds = "60";

std::string encoded(const std::string& bytes) {
  std::string out(base64::encoded_size(bytes.size()), '\0');
  out.resize(base64::encode(out.data(), bytes.data(), bytes.size()));
  return out;
}

std::string bytes_of(const json::object& in, const char* name) {
  if (!in.contains(name)) return {};
  const json::string& text = in.at(name).as_string();
  std::string out(base64::decoded_size(text.size()), '\0');
  out.resize(base64::decode(out.data(), text.data(), text.size()).first);
  return out;
}

std::uint64_t number_of(const json::object& in, const char* name) {
  if (!in.contains(name)) return 0;
  const json::value& value = in.at(name);
  return value.is_string() ? std::strtoull(value.as_string().c_str(), nullptr, 10)
                           : value.to_number<std::uint64_t>();
}

json::object key_value(const std::string& key, const std::string& value, std::uint64_t revision,
                       std::uint64_t lease) {
  return {{"key", encoded(key)},
          {"value", encoded(value)},
          {"mod_revision", std::to_string(revision)},
          {"lease", std::to_string(lease)}};
}

void refuse(StubPeer& peer, int code, const char* message) {
  peer.answer(400, json::serialize(json::object{{"code", code}, {"message", message}}));
}

bool send_line(StubPeer& peer, const json::object& line) {
  const std::string text = json::serialize(line) + "\n";
  char size[32];
  std::snprintf(size, sizeof(size), "%zx\r\n", text.size());
  return peer.send(size + text + "\r\n");
}

}  // namespace

FakeEtcd::~FakeEtcd() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  stub_.stop();
}

void FakeEtcd::put(const std::string& key, const std::string& value, std::uint64_t lease) {
  const std::lock_guard lock(mutex_);
  put_now(key, value, lease);
}

void FakeEtcd::end_lease(std::uint64_t lease) {
  const std::lock_guard lock(mutex_);
  end_now(lease);
}

std::string FakeEtcd::value(const std::string& key) {
  const std::lock_guard lock(mutex_);
  const auto found = values_.find(key);
  return found == values_.end() ? std::string() : found->second.value;
}

void FakeEtcd::fail_reads(bool fail) {
  const std::lock_guard lock(mutex_);
  reads_fail_ = fail;
}

void FakeEtcd::hold_watches(bool hold) {
  const std::lock_guard lock(mutex_);
  hold_watches_ = hold;
  changed_.notify_all();
}

void FakeEtcd::before_watch(std::function<void()> happens) {
  const std::lock_guard lock(mutex_);
  before_watch_ = std::move(happens);
}

json::object FakeEtcd::header() const {
  return {{"cluster_id", std::to_string(kCluster)}, {"revision", std::to_string(revision_)}};
}

void FakeEtcd::put_now(const std::string& key, const std::string& value, std::uint64_t lease) {
  values_[key] = {value, ++revision_, lease};
  history_.push_back({key, value, revision_, lease, false});
  changed_.notify_all();
}

void FakeEtcd::erase_now(const std::string& key) {
  if (values_.erase(key) == 0) return;
  history_.push_back({key, {}, ++revision_, 0, true});
  changed_.notify_all();
}

bool FakeEtcd::end_now(std::uint64_t lease) {
  if (leases_.erase(lease) == 0) return false;
  std::vector<std::string> keys;
  for (const auto& [key, value] : values_) {
    if (value.lease == lease) keys.push_back(key);
  }
  for (const std::string& key : keys) erase_now(key);
  return true;
}

std::string FakeEtcd::range(const json::object& in) {
  const std::string key = bytes_of(in, "key"), end = bytes_of(in, "range_end");
  const std::uint64_t limit = number_of(in, "limit");
  json::array found;
  bool more = false;
  for (auto at = values_.lower_bound(key); at != values_.end(); ++at) {
    if (end.empty() ? at->first != key : at->first >= end) break;
    more = limit != 0 && found.size() == limit;
    if (more) break;
    found.push_back(key_value(at->first, at->second.value, at->second.revision, at->second.lease));
  }
  return json::serialize(json::object{{"header", header()}, {"kvs", found}, {"more", more}});
}

// One comparison of a revision, one put, one read.
std::string FakeEtcd::txn(const json::object& in) {
  bool holds = true;
  for (const json::value& each : in.at("compare").as_array()) {
    const json::object& compare = each.as_object();
    const auto at = values_.find(bytes_of(compare, "key"));
    const std::uint64_t there = at == values_.end() ? 0 : at->second.revision;
    const std::uint64_t wanted = number_of(compare, "mod_revision");
    const json::string& result = compare.at("result").as_string();
    holds = holds && (result == "EQUAL"       ? there == wanted
                      : result == "NOT_EQUAL" ? there != wanted
                                              : there > wanted);
  }
  const auto only = [&](const char* branch, const char* operation) -> const json::object& {
    return in.at(branch).as_array().at(0).at(operation).as_object();
  };
  if (holds) {
    const json::object& put = only("success", "request_put");
    put_now(bytes_of(put, "key"), bytes_of(put, "value"), number_of(put, "lease"));
    return json::serialize(json::object{{"header", header()}, {"succeeded", true}});
  }
  const json::value read = json::parse(range(only("failure", "request_range")));
  return json::serialize(json::object{
      {"header", header()}, {"responses", json::array{json::object{{"response_range", read}}}}});
}

void FakeEtcd::serve(StubPeer& peer, const StubRequest& request) {
  const json::value parsed = json::parse(request.body);
  const json::object& in = parsed.as_object();
  if (request.path == "/v3/watch") {
    const json::object& create = in.at("create_request").as_object();
    std::function<void()> happens;
    {
      const std::lock_guard lock(mutex_);
      happens = std::exchange(before_watch_, nullptr);
    }
    if (happens) happens();
    return watch(peer, number_of(create, "start_revision"));
  }
  const std::lock_guard lock(mutex_);
  const std::uint64_t id = number_of(in, "ID");
  const auto answer = [&](const json::object& more = {}) {
    json::object out = more;
    out["header"] = header();
    peer.answer(200, json::serialize(out));
  };
  if (request.path == "/v3/kv/range") {
    if (reads_fail_) return peer.answer(500, R"({"code":2,"message":"the disk is gone"})");
    return peer.answer(200, range(in));
  }
  if (request.path == "/v3/kv/txn") return peer.answer(200, txn(in));
  if (request.path == "/v3/kv/deleterange") {
    erase_now(bytes_of(in, "key"));
    return answer();
  }
  if (request.path == "/v3/lease/grant") {
    if (!leases_.insert(id).second) return refuse(peer, 9, "etcdserver: lease already exists");
    return answer({{"ID", std::to_string(id)}, {"TTL", kLeaseSeconds}});
  }
  if (request.path == "/v3/lease/keepalive") {
    json::object result{{"ID", std::to_string(id)}};
    if (leases_.contains(id)) result["TTL"] = kLeaseSeconds;
    return answer({{"result", result}});
  }
  if (request.path == "/v3/lease/revoke") {
    return end_now(id) ? answer() : refuse(peer, 5, "etcdserver: requested lease not found");
  }
  refuse(peer, 12, "not spoken here");
}

// Until the other side does not listen any more.
void FakeEtcd::watch(StubPeer& peer, std::uint64_t from) {
  peer.close();
  peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
  std::unique_lock lock(mutex_);
  if (!send_line(peer, {{"result", {{"header", header()}, {"created", true}}}})) return;
  for (std::size_t next = 0; !stopping_;) {
    if (hold_watches_ || next == history_.size()) {
      changed_.wait(lock);
      continue;
    }
    const Change& change = history_[next++];
    if (change.revision < from) continue;
    json::object event{{"kv", key_value(change.key, change.value, change.revision, change.lease)}};
    if (change.deleted) event["type"] = "DELETE";
    if (!send_line(peer, {{"result", {{"header", header()}, {"events", json::array{event}}}}})) {
      return;
    }
  }
}

}  // namespace kvl::test
