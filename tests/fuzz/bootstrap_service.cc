// A sequence of requests to the rendezvous, both protocols: answers are HTTP with JSON in them, and
// what is kept stays bounded.
#include <boost/json.hpp>

#include "kvcache/bootstrap/wire.h"
#include "router/bootstrap/memory_store.h"
#include "router/bootstrap/service.h"
#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {
namespace {

class ManualClock final : public Clock {
 public:
  std::int64_t now_ns() const override { return now; }
  std::int64_t now = 1;
};

constexpr std::uint64_t kRecordsMax = 8;

// One request: milliseconds that pass, then a line "METHOD TARGET" and the body.
void ask(bootstrap::Service& service, ManualClock& clock, Bytes bytes) {
  Input parts(bytes);
  clock.now += std::int64_t{parts.number<std::uint8_t>()} * 100'000'000;
  const std::string_view text = text_of(parts.rest());
  const std::string_view line = text.substr(0, text.find('\n'));
  const std::string_view body = text.substr(std::min(text.size(), line.size() + 1));
  const std::string_view method = line.substr(0, line.find(' '));
  const std::string_view target = line.substr(std::min(line.size(), method.size() + 1));
  const std::string_view path = target.substr(0, target.find('?'));
  bootstrap::ServiceAnswer answer{.status = 0};
  service.handle({.method = method,
                  .path = path,
                  .query = target.substr(std::min(target.size(), path.size() + 1)),
                  .body = body},
                 [&answer](const bootstrap::ServiceAnswer& given) { answer = given; });
  require(answer.status >= 200 && answer.status < 600, "an answer has a status");
  if (answer.content_type == "application/json") {
    boost::json::error_code failed;
    boost::json::parse(answer.body, failed);
    require(!failed, "an answer that says JSON is JSON");
  }
}

std::vector<std::byte> request(std::string_view line, std::string_view body = {}) {
  std::string text(1, '\1');
  text.append(line).append("\n").append(body);
  return piece(text);
}

}  // namespace

void fuzz_bootstrap_service(Bytes input) {
  ManualClock clock;
  const BootstrapServerOptions options{.dp_rank_ttl_ms = 1000, .records_max = kRecordsMax};
  bootstrap::MemoryStore store(clock, 1, kRecordsMax);
  bootstrap::Service service(store, clock, options);
  Input requests(input);
  for (int i = 0; i < 32 && !requests.empty(); ++i) ask(service, clock, requests.piece());
  require(store.size() <= kRecordsMax, "records are bounded");
  clock.now += std::int64_t{options.lease_max_ms} * 2'000'000;
  store.expire();
  require(store.list("rank/")->empty(), "every lease ends");
}

Seeds seeds_bootstrap_service() {
  RankRecord record;
  record.cluster = "c/%";
  record.instance = "i";
  record.tp_size = record.pp_size = record.dp_size = 1;
  record.address = "127.0.0.1:1";
  const std::string body = bootstrap::encode_register(record, 500);
  const std::string_view rank =
      R"({"attn_tp_size":1,"attn_tp_rank":0,"rank_ip":"10.0.0.1","rank_port":99,"page_size":64})";
  return {join({request("POST /kvlane/v1/register", body),
                request("GET /kvlane/v1/ranks?instance=i&cluster=c%2F%25"),
                request("GET /kvlane/v1/instances?cluster=c%2F%25"), request("GET /health"),
                request("PUT /kvlane/v1/lease/7"), request("DELETE /kvlane/v1/lease/7")}),
          join({request("PUT /route", rank),
                request("GET /route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1"
                        "&target_pp_rank=-1"),
                request("GET /route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0"
                        "&target_pp_rank=0"),
                request("POST /register_dp_rank", R"({"bootstrap_room":5,"dp_rank":0})"),
                request("POST /query_dp_ranks", R"({"bootstrap_rooms":[5,6]})")})};
}

}  // namespace kvl::fuzz
