// The table of causes.
#include "transport/shm/shm_refusals.h"

#include <string_view>

#include "kvl/log.h"
#include "kvl/status.h"
#include "transport/base/ordered_table.h"

namespace kvl::shm {
namespace {

struct Info {
  Refusal refusal;
  Code code;
  std::string_view cause, hint;
  bool hostile;  // no peer of ours does that
};
constexpr std::array<Info, 5> kTable{{
    {Refusal::other_user, Code::permission, "other_user",
     "run both processes as one user, or see who connects", true},
    {Refusal::crowded, Code::exhausted, "crowded",
     "64 connections wait with their hello: see which process opens them", true},
    {Refusal::timed_out, Code::timed_out, "timed_out",
     "a process of this user connects and says nothing within shm.connect_timeout_ms", false},
    {Refusal::malformed, Code::invalid_argument, "malformed",
     "a process of this user gave up, or is of another release", false},
    {Refusal::unknown_token, Code::permission, "unknown_token",
     "a process of this user is in no session with us: see which", true},
}};
static_assert(in_order<&Info::refusal>(kTable));

}  // namespace

void Refusals::add(Refusal refusal, int pid, unsigned uid) {
  const auto index = static_cast<std::size_t>(refusal);
  const Info& info = kTable[index];
  counts_[index].add();
  log(info.hostile ? LogLevel::warning : LogLevel::info, "shm.refused",
      {{"pid", pid},
       {"uid", uid},
       {"code", to_string(info.code)},
       {"cause", info.cause},
       {"hint", info.hint}});
}

void Refusals::visit(MetricVisitor& visitor, const MetricLabels& labels) const {
  static_assert(kCount == kTable.size());
  MetricLabels with_cause = labels;
  with_cause.emplace_back("cause", "");
  for (std::size_t i = 0; i < kCount; ++i) {
    with_cause.back().second = std::string(kTable[i].cause);
    visitor.counter("kvlane_shm_refused_connections_total",
                    "Connections that were no peer of ours, by cause", with_cause,
                    static_cast<double>(counts_[i].value()));
  }
}

}  // namespace kvl::shm
