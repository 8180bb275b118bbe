// The table of causes.
#include "router/bootstrap/refusals.h"

#include "kvcache/bootstrap/wire.h"
#include "kvl/log.h"
#include "transport/base/ordered_table.h"

namespace kvl::bootstrap {
namespace {

constexpr std::size_t kTextBytesMax = 200;  // of a path or an answer in a line

constexpr std::array<RefusalInfo, kRefusals> kTable{{
    {Refusal::bad_request, Code::invalid_argument, "bad_request",
     "the client does not speak this protocol or version: run one release everywhere", false},
    {Refusal::not_found, Code::not_found, "not_found",
     "nothing while workers start or end; else see whether prefill registers here", false},
    {Refusal::conflict, Code::invalid_argument, "conflict",
     "two processes claim one rank, or releases differ: see which workers share an instance", true},
    {Refusal::unavailable, Code::unavailable, "unavailable",
     "nothing while prefill starts; else see whether the store runs", false},
    {Refusal::full, Code::exhausted, "full",
     "raise bootstrap.records_max, or see who registers so much", true},
}};
static_assert(in_order<&RefusalInfo::refusal>(kTable));

}  // namespace

const RefusalInfo& about(Refusal refusal) { return kTable[static_cast<std::size_t>(refusal)]; }

Refusal refusal_of(int status, std::string_view code) {
  if (code == kRefusedFull) return Refusal::full;
  if (status == 404) return Refusal::not_found;
  if (status == 409) return Refusal::conflict;
  return status >= 500 ? Refusal::unavailable : Refusal::bad_request;
}

void RefusalCounters::add(Refusal refusal, std::string_view path, std::string_view answer) {
  const RefusalInfo& info = about(refusal);
  counts[static_cast<std::size_t>(refusal)].add();
  log(info.warn ? LogLevel::warning : LogLevel::info, "bootstrap.refused",
      {{"path", path.substr(0, kTextBytesMax)},
       {"code", to_string(info.code)},
       {"cause", info.cause},
       {"why", answer.substr(0, kTextBytesMax)},
       {"hint", info.hint}});
}

}  // namespace kvl::bootstrap
