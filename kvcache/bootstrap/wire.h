// The rendezvous' JSON, version 1 (kvcache/bootstrap/README.md): written and read by both sides.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/bootstrap_client.h"
#include "kvl/status.h"

namespace kvl::bootstrap {

constexpr std::uint64_t kWireVersion = 1;
constexpr std::size_t kNameBytesMax = 256;
constexpr std::size_t kLayoutBytesMax = 1 << 20;
constexpr std::uint32_t kSizeMax = 4096;

// Why a registration was refused, as the "code" of an error answer; the client's Status follows it.
constexpr std::string_view kRefusedVersion = "version";
constexpr std::string_view kRefusedEpoch = "epoch";
constexpr std::string_view kRefusedFull = "full";

struct RegisterRequest {
  RankRecord record;
  std::uint32_t lease_ms = 0;
};

// invalid_argument with the first rule that a record breaks as its context.
Status check_record(const RankRecord& record);

// One JSON object.
std::string encode_record(const RankRecord& record);
std::string encode_register(const RankRecord& record, std::uint32_t lease_ms);

// invalid_argument: not JSON, a field missing or out of its bounds (named in the context);
// unsupported: another version.
Result<RegisterRequest> decode_register(std::string_view json);

// {"version":1,"ranks":[…]} around records that encode_record() wrote. `stale_ms` from 0 on says
// that the service cannot reach its store, and since when: "stale_ms":N.
std::string encode_ranks(const std::vector<std::string>& records, std::int64_t stale_ms = -1);
Result<std::vector<RankRecord>> decode_ranks(std::string_view json);

// {"lease":1,"lease_ms":2}
struct Lease {
  std::uint64_t id = 0;
  std::uint32_t lease_ms = 0;
};
std::string encode_lease(const Lease& lease);
Result<Lease> decode_lease(std::string_view json);

// {"error":{"code":…,"message":…}}; decoding gives the code, "" when it is something else.
std::string encode_error(std::string_view code, std::string_view message);
std::string decode_error(std::string_view json);

// The epoch of a record that encode_record() wrote; 0 for anything else.
std::uint64_t epoch_of(std::string_view record_json);

}  // namespace kvl::bootstrap
