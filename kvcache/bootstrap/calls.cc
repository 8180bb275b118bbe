// Requests as text, and what answers mean for the caller.
#include "kvcache/bootstrap/calls.h"

namespace kvl::bootstrap {
namespace {

// Percent-encoded, for a query.
std::string escape(std::string_view text) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    const bool plain = (u >= '0' && u <= '9') || (u >= 'a' && u <= 'z') || (u >= 'A' && u <= 'Z') ||
                       c == '-' || c == '.' || c == '_' || c == '~' || c == ':';
    if (plain) {
      out += c;
    } else {
      out.append({'%', kHex[u >> 4], kHex[u & 15]});
    }
  }
  return out;
}

std::string lease_path(std::uint64_t lease) { return "/kvlane/v1/lease/" + std::to_string(lease); }

// What a refusal means for the caller.
Status refusal(const HttpAnswer& answer) {
  const std::string code = decode_error(answer.body);
  if (code == kRefusedVersion) return {Code::unsupported, "the rendezvous speaks another version"};
  if (code == kRefusedEpoch) {
    return {Code::permission, "the rendezvous knows a newer epoch of this rank"};
  }
  if (code == kRefusedFull) return {Code::exhausted, "the rendezvous is full"};
  if (answer.status == 401) {
    return {Code::permission, "the rendezvous has a secret: set the same here"};
  }
  if (answer.status == 404) return {Code::not_found, "the rendezvous does not know it"};
  if (answer.status >= 500) return {Code::unavailable, "the rendezvous failed"};
  return {Code::invalid_argument, "the rendezvous refused the request"};
}

}  // namespace

Call register_call(const RankRecord& record, std::uint32_t lease_ms) {
  return {"POST", "/kvlane/v1/register", encode_register(record, lease_ms)};
}
Call renew_call(std::uint64_t lease) { return {"PUT", lease_path(lease), {}}; }
Call revoke_call(std::uint64_t lease) { return {"DELETE", lease_path(lease), {}}; }
Call ranks_call(std::string_view cluster, std::string_view instance) {
  return {
      "GET", "/kvlane/v1/ranks?cluster=" + escape(cluster) + "&instance=" + escape(instance), {}};
}

Status read_done(const Result<HttpAnswer>& answer) {
  if (!answer.ok()) return answer.status();
  return answer->status == 200 ? Status{} : refusal(*answer);
}

Result<Lease> read_lease(const Result<HttpAnswer>& answer) {
  KVL_TRY(read_done(answer));
  const Result<Lease> lease = decode_lease(answer->body);
  if (!lease.ok()) return Status{Code::corrupt, "the rendezvous' answer to a registration"};
  return lease;
}

Result<std::vector<RankRecord>> read_ranks(const Result<HttpAnswer>& answer) {
  KVL_TRY(read_done(answer));
  Result<std::vector<RankRecord>> found = decode_ranks(answer->body);
  if (found.code() == Code::unsupported) return found;
  if (!found.ok()) return Status{Code::corrupt, "the rendezvous' list of ranks"};
  if (found->empty()) return Status{Code::not_found, "no rank of this instance is registered"};
  return found;
}

}  // namespace kvl::bootstrap
