// kvlane's own protocol over the store; everything else goes to SGLang's table.
#include "router/bootstrap/service.h"

#include <algorithm>
#include <charconv>

#include "kvcache/bootstrap/wire.h"
#include "kvl/trace.h"
#include "router/http/message.h"
#include "router/http/url.h"

namespace kvl::bootstrap {
namespace {

constexpr std::string_view kLeasePath = "/kvlane/v1/lease/";

// Parts of keys are free text: '/' inside them must not look like the separator.
std::string key_part(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '/' || c == '%') {
      out += c == '/' ? "%2F" : "%25";
    } else {
      out += c;
    }
  }
  return out + "/";
}

std::string instance_key(std::string_view cluster, std::string_view instance) {
  return "rank/" + key_part(cluster) + key_part(instance);
}

std::string rank_key(const RankRecord& record) {
  return instance_key(record.cluster, record.instance) + std::to_string(record.dp_rank) + "." +
         std::to_string(record.pp_rank) + "." + std::to_string(record.tp_rank);
}

ServiceAnswer refuse(int status, std::string_view code, std::string_view message) {
  return {.status = status, .body = encode_error(code, message)};
}

ServiceAnswer store_failed(const Status& why) {
  const bool full = why.code() == Code::exhausted;
  return refuse(503, full ? kRefusedFull : "store", why.context());
}

}  // namespace

Service::Service(Store& store, const Clock& clock, const BootstrapServerOptions& options)
    : store_(store), options_(options), sglang_(clock, options) {}

ServiceAnswer Service::handle(const ServiceRequest& request) {
  ServiceAnswer answer = route(request);
  if (answer.status >= 400) counters_.refused_total.add();
  return answer;
}

ServiceAnswer Service::route(const ServiceRequest& request) {
  const auto is = [&](std::string_view method, std::string_view path) {
    return request.method == method && request.path == path;
  };
  if (is("GET", "/health")) return {.body = "OK", .content_type = "text/plain"};
  if (is("POST", "/kvlane/v1/register")) return register_rank(request.body);
  if (is("GET", "/kvlane/v1/ranks")) return ranks(request.query);
  if (is("GET", "/kvlane/v1/instances")) return instances(request.query);
  if (request.path.starts_with(kLeasePath)) {
    return lease(request, request.path.substr(kLeasePath.size()));
  }
  SglangAnswer answer;
  if (is("PUT", "/route")) {
    counters_.registrations_total.add();
    answer = sglang_.put_route(request.body);
  } else if (is("GET", "/route")) {
    counters_.lookups_total.add();
    answer = sglang_.get_route(request.query);
  } else if (is("POST", "/register_dp_rank")) {
    answer = sglang_.register_dp_rank(request.body);
  } else if (is("POST", "/query_dp_ranks")) {
    answer = sglang_.query_dp_ranks(request.body);
  } else {
    return refuse(404, "path", "no such path here");
  }
  const bool object = answer.body.starts_with('{');
  return {.status = answer.status,
          .body = std::move(answer.body),
          .content_type = object ? "application/json" : "text/plain"};
}

ServiceAnswer Service::register_rank(std::string_view body) {
  const Result<RegisterRequest> request = decode_register(body);
  if (request.code() == Code::unsupported) {
    return refuse(409, kRefusedVersion,
                  "this service speaks version " + std::to_string(kWireVersion));
  }
  if (!request.ok()) {
    return refuse(400, "field", std::string("missing or wrong: ") + request.status().context());
  }
  const RankRecord& record = request->record;
  const std::string key = rank_key(record);
  const Result<std::optional<StoredValue>> known = store_.get(key);
  if (!known.ok()) return store_failed(known.status());
  if (known->has_value() && epoch_of((*known)->value) > record.epoch) {
    return refuse(409, kRefusedEpoch, "a newer epoch of this rank is registered");
  }
  const std::uint32_t lease_ms = std::clamp(request->lease_ms, options_.lease_min_ms,
                                            std::max(options_.lease_min_ms, options_.lease_max_ms));
  const Result<LeaseId> lease = store_.grant(lease_ms);
  if (!lease.ok()) return store_failed(lease.status());
  const std::uint64_t expected = known->has_value() ? (*known)->revision : 0;
  if (Status put = store_.put(key, encode_record(record), *lease, expected); !put.ok()) {
    // The registration failed; that its lease may linger until it expires is harmless.
    [[maybe_unused]] const Status revoked = store_.revoke(*lease);
    if (put.code() == Code::aborted) return refuse(409, kRefusedEpoch, put.context());
    return store_failed(put);
  }
  counters_.registrations_total.add();
  trace({.stage = Stage::registered, .side = "bootstrap", .what = key});
  return {.body = encode_lease({*lease, lease_ms})};
}

ServiceAnswer Service::lease(const ServiceRequest& request, std::string_view text) {
  LeaseId id = 0;
  const auto [end, errc] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (errc != std::errc{} || end != text.data() + text.size()) {
    return refuse(400, "field", "the lease id must be a number");
  }
  Status done;
  if (request.method == "PUT") {
    counters_.renewals_total.add();
    done = store_.keep_alive(id);
  } else if (request.method == "DELETE") {
    counters_.removals_total.add();
    done = store_.revoke(id);
  } else {
    return refuse(405, "method", "PUT renews a lease, DELETE ends it");
  }
  if (done.code() == Code::not_found) return refuse(404, "lease", "no such lease");
  if (!done.ok()) return store_failed(done);
  return {.body = "{}"};
}

ServiceAnswer Service::ranks(std::string_view query) {
  counters_.lookups_total.add();
  const std::optional<std::string> instance = http::query_value(query, "instance");
  if (!instance.has_value() || instance->empty()) {
    return refuse(400, "field", "the query needs instance=NAME");
  }
  const std::string cluster = http::query_value(query, "cluster").value_or("");
  const auto found = store_.list(instance_key(cluster, *instance));
  if (!found.ok()) return store_failed(found.status());
  trace({.stage = Stage::looked_up, .side = "bootstrap", .what = *instance});
  std::vector<std::string> records;
  for (const StoredValue& value : *found) records.push_back(value.value);
  return {.body = encode_ranks(records)};
}

ServiceAnswer Service::instances(std::string_view query) {
  counters_.lookups_total.add();
  const std::string cluster = http::query_value(query, "cluster").value_or("");
  const std::string prefix = "rank/" + key_part(cluster);
  const auto found = store_.list(prefix);
  if (!found.ok()) return store_failed(found.status());
  std::string body = "{\"instances\":[";
  std::string last;
  for (const StoredValue& value : *found) {
    const std::size_t end = value.key.find('/', prefix.size());
    const std::string part = value.key.substr(prefix.size(), end - prefix.size());
    if (part == last) continue;
    if (!last.empty()) body += ',';
    body += http::json_quote(http::percent_decode(part).value_or(part));
    last = part;
  }
  return {.body = body + "]}"};
}

}  // namespace kvl::bootstrap
