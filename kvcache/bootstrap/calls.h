// The rendezvous' calls without a connection: what to send, and what an answer means. The client
// carries them over HTTP, the simulator over its network.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/bootstrap/http_call.h"
#include "kvcache/bootstrap/wire.h"
#include "kvl/bootstrap_client.h"
#include "kvl/status.h"

namespace kvl::bootstrap {

struct Call {
  std::string_view method;
  std::string path;  // with its query
  std::string body;
};

Call register_call(const RankRecord& record, std::uint32_t lease_ms);
Call renew_call(std::uint64_t lease);
Call revoke_call(std::uint64_t lease);
Call ranks_call(std::string_view cluster, std::string_view instance);

// Errors as BootstrapClient documents them; those of the connection are passed on.
Result<Lease> read_lease(const Result<HttpAnswer>& answer);
Result<std::vector<RankRecord>> read_ranks(const Result<HttpAnswer>& answer);
Status read_done(const Result<HttpAnswer>& answer);

}  // namespace kvl::bootstrap
