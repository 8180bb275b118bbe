// The rendezvous' JSON: records, leases, errors, base64.
#include "kvcache/bootstrap/base64.h"
#include "kvcache/bootstrap/wire.h"
#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {
namespace {

RankRecord record() {
  RankRecord record;
  record.cluster = "default";
  record.instance = "127.0.0.1:8998";
  record.tp_size = record.pp_size = record.dp_size = 1;
  record.address = "127.0.0.1:4711";
  record.epoch = 9;
  record.layout = seed("layout");
  return record;
}

}  // namespace

void fuzz_bootstrap_wire(Bytes input) {
  using namespace bootstrap;
  const std::string_view text = text_of(input);
  if (const auto request = decode_register(text)) {
    require(check_record(request->record).ok(), "a decoded record keeps the rules");
    const auto again = decode_register(encode_register(request->record, request->lease_ms));
    require(again.ok() && again->lease_ms == request->lease_ms &&
                encode_record(again->record) == encode_record(request->record),
            "a registration survives a trip");
    require(epoch_of(encode_record(request->record)) == request->record.epoch, "an epoch");
  }
  if (const auto records = decode_ranks(text)) {
    std::vector<std::string> texts;
    for (const RankRecord& one : *records) texts.push_back(encode_record(one));
    const auto again = decode_ranks(encode_ranks(texts));
    require(again.ok() && again->size() == records->size(), "a list of ranks survives a trip");
  }
  if (const auto lease = decode_lease(text)) {
    const auto again = decode_lease(encode_lease(*lease));
    require(again.ok() && again->id == lease->id && again->lease_ms == lease->lease_ms, "a lease");
  }
  (void)decode_error(text);
  (void)epoch_of(text);
  if (const auto bytes = decode_base64(text)) {
    require(encode_base64(*bytes) == text, "base64 has one form");
  }
  require(decode_base64(encode_base64(input)) == std::vector(input.begin(), input.end()),
          "bytes survive base64");
}

Seeds seeds_bootstrap_wire() {
  using namespace bootstrap;
  const std::string one = encode_record(record());
  return {seed(encode_register(record(), 1000)), seed(encode_ranks({one, one})),
          seed(encode_lease({5, 1000})), seed(encode_error("full", "no room")),
          seed(encode_base64(seed("some bytes")))};
}

}  // namespace kvl::fuzz
