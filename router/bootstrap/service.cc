// kvlane's own protocol over the store; everything else goes to SGLang's table.
#include "router/bootstrap/service.h"

#include <algorithm>
#include <charconv>

#include "kvcache/bootstrap/wire.h"
#include "kvl/log.h"
#include "kvl/trace.h"
#include "router/http/message.h"
#include "router/http/url.h"

namespace kvl::bootstrap {
namespace {

constexpr int kTriesMax = 4;  // of a registration that others overtake
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

// A registration on its way through the store.
struct Service::Registration {
  std::string key, value;
  std::uint64_t epoch = 0;
  std::uint32_t lease_ms = 0;
  int tries = 0;
  Answered answered;
};

Service::Service(Store& store, const Clock& clock, const BootstrapServerOptions& options)
    : store_(store), options_(options), sglang_(store, clock, options) {}

void Service::handle(const ServiceRequest& request, Answered answered) {
  route(request, [this, path = std::string(request.path),
                  answered = std::move(answered)](ServiceAnswer answer) {
    if (answer.status >= 400) {
      counters_.refused.add(refusal_of(answer.status, decode_error(answer.body)), path,
                            answer.body);
    }
    answered(std::move(answer));
  });
}

void Service::route(const ServiceRequest& request, Answered answered) {
  const auto is = [&](std::string_view method, std::string_view path) {
    return request.method == method && request.path == path;
  };
  if (is("GET", "/health")) return answered(health());
  if (is("POST", "/kvlane/v1/register")) return register_rank(request.body, std::move(answered));
  if (is("GET", "/kvlane/v1/ranks")) return answered(ranks(request.query));
  if (is("GET", "/kvlane/v1/instances")) return answered(instances(request.query));
  if (request.path.starts_with(kLeasePath)) {
    return lease(request, request.path.substr(kLeasePath.size()), std::move(answered));
  }
  if (route_sglang(request, answered)) return;
  answered(refuse(404, "path", "no such path here"));
}

bool Service::route_sglang(const ServiceRequest& request, Answered& answered) {
  const auto is = [&](std::string_view method, std::string_view path) {
    return request.method == method && request.path == path;
  };
  const auto put = is("PUT", "/route");
  const auto dp_rank = is("POST", "/register_dp_rank");
  const auto route = is("GET", "/route");
  if (!put && !dp_rank && !route && !is("POST", "/query_dp_ranks")) return false;
  const SglangTable::Answered finish = [answered =
                                            std::move(answered)](const SglangAnswer& answer) {
    const bool object = answer.body.starts_with('{');
    answered({.status = answer.status,
              .body = answer.body,
              .content_type = object ? "application/json" : "text/plain"});
  };
  if (put) {
    counters_.registrations_total.add();
    sglang_.put_route(request.body, finish);
  } else if (dp_rank) {
    sglang_.register_dp_rank(request.body, finish);
  } else if (route) {
    counters_.lookups_total.add();
    finish(sglang_.get_route(request.query));
  } else {
    finish(sglang_.query_dp_ranks(request.body));
  }
  return true;
}

// One server answers with two letters, as SGLang's does; one of several says how it stands with
// the store that they share. 503 only while it knows nothing at all.
ServiceAnswer Service::health() const {
  const StoreHealth store = store_.health();
  if (!store.shared) return {.body = "OK", .content_type = "text/plain"};
  const char* const state = !store.loaded ? "starting" : store.reachable ? "ok" : "stale";
  return {.status = store.loaded ? 200 : 503,
          .body = std::string("{\"status\":\"") + state + "\",\"store\":\"" +
                  std::string(store.kind) +
                  "\",\"reachable\":" + (store.reachable ? "true" : "false") +
                  ",\"stale_ms\":" + std::to_string(store.stale_ms) +
                  ",\"records\":" + std::to_string(store_.size()) + "}"};
}

void Service::register_rank(std::string_view body, Answered answered) {
  const Result<RegisterRequest> request = decode_register(body);
  if (request.code() == Code::unsupported) {
    return answered(refuse(409, kRefusedVersion,
                           "this service speaks version " + std::to_string(kWireVersion)));
  }
  if (!request.ok()) {
    return answered(
        refuse(400, "field", std::string("missing or wrong: ") + request.status().context()));
  }
  const RankRecord& record = request->record;
  try_to_register({.key = rank_key(record),
                   .value = encode_record(record),
                   .epoch = record.epoch,
                   .lease_ms = std::clamp(request->lease_ms, options_.lease_min_ms,
                                          std::max(options_.lease_min_ms, options_.lease_max_ms)),
                   .answered = std::move(answered)});
}

// The epoch is looked at, the lease granted, the record put; where another server was faster with
// the put, what it wrote is looked at in the same way.
void Service::try_to_register(Registration registration) {
  const Result<std::optional<StoredValue>> known = store_.get(registration.key);
  if (!known.ok()) return registration.answered(store_failed(known.status()));
  if (known->has_value() && epoch_of((*known)->value) > registration.epoch) {
    return registration.answered(
        refuse(409, kRefusedEpoch, "a newer epoch of this rank is registered"));
  }
  const std::uint64_t expected = known->has_value() ? (*known)->revision : 0;
  const std::uint32_t lease_ms = registration.lease_ms;
  store_.grant(lease_ms, [this, expected, registration = std::move(registration)](
                             const Result<LeaseId>& lease) mutable {
    if (!lease.ok()) return registration.answered(store_failed(lease.status()));
    put_record(std::move(registration), *lease, expected);
  });
}

void Service::put_record(Registration registration, LeaseId lease, std::uint64_t expected) {
  const std::string key = registration.key, value = registration.value;
  store_.put(
      key, value, lease, expected,
      [this, lease, registration = std::move(registration)](const Status& put) mutable {
        if (put.ok()) {
          counters_.registrations_total.add();
          trace({.stage = Stage::registered, .side = "bootstrap", .what = registration.key});
          return registration.answered({.body = encode_lease({lease, registration.lease_ms})});
        }
        // That the lease may linger until it expires is harmless.
        store_.revoke(lease, [](const Status&) {});
        if (put.code() != Code::aborted) return registration.answered(store_failed(put));
        if (++registration.tries < kTriesMax) return try_to_register(std::move(registration));
        registration.answered(refuse(503, "store", put.context()));
      });
}

void Service::lease(const ServiceRequest& request, std::string_view text, Answered answered) {
  LeaseId id = 0;
  const auto [end, errc] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (errc != std::errc{} || end != text.data() + text.size() || id == kNoLease) {
    return answered(refuse(400, "field", "the lease id must be a number"));
  }
  if (request.method != "PUT" && request.method != "DELETE") {
    return answered(refuse(405, "method", "PUT renews a lease, DELETE ends it"));
  }
  const auto finish = [answered = std::move(answered)](const Status& done) {
    if (done.code() == Code::not_found) return answered(refuse(404, "lease", "no such lease"));
    answered(done.ok() ? ServiceAnswer{.body = "{}"} : store_failed(done));
  };
  if (request.method == "PUT") {
    counters_.renewals_total.add();
    store_.keep_alive(id, finish);
  } else {
    counters_.removals_total.add();
    store_.revoke(id, finish);
  }
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
  const StoreHealth store = store_.health();
  return {.body = encode_ranks(records, store.reachable ? -1 : store.stale_ms)};
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
