// The table of causes.
#include "router/http/refusals.h"

#include "kvl/log.h"
#include "transport/base/ordered_table.h"

namespace kvl::http {
namespace {

constexpr std::array<RefusalInfo, kRefusals> kTable{{
    {Refusal::crowded, Code::exhausted, "crowded",
     "too many connections at once: see who opens them, or raise max_connections", true},
    {Refusal::crowded_address, Code::exhausted, "crowded_address",
     "one address opens too many connections: see which, or raise max_connections_per_address",
     true},
    {Refusal::too_often, Code::exhausted, "too_often",
     "one address sends too many requests: see which, or raise max_requests_per_second_per_address",
     true},
    {Refusal::overloaded, Code::exhausted, "overloaded",
     "large requests fill max_buffered_bytes: raise it, or send fewer at once", true},
    {Refusal::unauthorized, Code::permission, "unauthorized",
     "the client has no key or secret of this server, or a wrong one: see docs/tls.md", true},
    {Refusal::too_slow, Code::timed_out, "too_slow",
     "the client, or the network to it, is slower than header_timeout_secs allows", false},
    {Refusal::too_large, Code::exhausted, "too_large",
     "the client sends more than max_payload_size or 64 KiB of head", false},
    {Refusal::bad_request, Code::invalid_argument, "bad_request",
     "the client does not speak HTTP/1.1: look at it", false},
    {Refusal::unsupported, Code::unsupported, "unsupported",
     "the client wants another HTTP version or transfer coding: look at it", false},
}};
static_assert(in_order<&RefusalInfo::refusal>(kTable));

}  // namespace

const RefusalInfo& about(Refusal refusal) { return kTable[static_cast<std::size_t>(refusal)]; }

Refusal refusal_of(int status) {
  switch (status) {
    case 401:
      return Refusal::unauthorized;
    case 408:
      return Refusal::too_slow;
    case 413:
    case 431:
      return Refusal::too_large;
    case 429:
      return Refusal::too_often;
    case 501:
      return Refusal::unsupported;
    case 503:
      return Refusal::overloaded;
    default:
      return Refusal::bad_request;
  }
}

void RefusalCounters::add(Refusal refusal, std::string_view client, std::string_view why) {
  const RefusalInfo& info = about(refusal);
  counts[static_cast<std::size_t>(refusal)].add();
  log(info.warn ? LogLevel::warning : LogLevel::info, "http.refused",
      {{"client", client},
       {"code", to_string(info.code)},
       {"cause", info.cause},
       {"why", why.empty() ? info.cause : why},
       {"hint", info.hint}});
}

}  // namespace kvl::http
