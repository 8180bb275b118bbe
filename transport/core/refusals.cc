// The table of causes. docs/failures.md shows it; a test compares them.
#include "transport/core/refusals.h"

#include <string>

#include "kvl/log.h"
#include "transport/base/ordered_table.h"

namespace kvl {
namespace {

constexpr std::array<RefusalInfo, kRefusals> kTable{{
    {Refusal::connections, Code::exhausted, "too_many_connections",
     "8192 control connections are open; see who opens them, or use more engines"},
    {Refusal::strangers, Code::exhausted, "crowded",
     "too many connections that do not say who they are; see who floods this port, or raise "
     "strangers_max"},
    {Refusal::address, Code::exhausted, "crowded_address",
     "one address opens too many connections at once; see who floods this port, or raise "
     "strangers_per_address_max"},
    {Refusal::peers, Code::exhausted, "too_many_peers", "raise peers_max, or connect fewer peers"},
    {Refusal::descriptors, Code::exhausted, "no_descriptors",
     "accepting pauses: raise the limit of open files (ulimit -n, LimitNOFILE=)"},
    {Refusal::timed_out, Code::timed_out, "timed_out",
     "somebody connects and does not say who it is within connect_timeout_ms"},
    {Refusal::secret_required, Code::permission, "secret_required",
     "the other side has no secret: set secret_file there"},
    {Refusal::no_secret, Code::permission, "no_secret",
     "the other side has a secret: set secret_file here"},
    {Refusal::wrong_secret, Code::permission, "wrong_secret",
     "give both sides the same secret; see docs/security.md, rotation"},
    {Refusal::tampered, Code::corrupt, "tampered",
     "somebody between the hosts changes what they say"},
    {Refusal::too_long, Code::invalid_argument, "too_long",
     "not kvlane, or another release: see who connects to this port"},
    {Refusal::malformed, Code::invalid_argument, "malformed",
     "not kvlane, or another release: see who connects to this port"},
    {Refusal::other_version, Code::unsupported, "other_version", "run one release on both sides"},
    {Refusal::out_of_place, Code::invalid_argument, "out_of_place",
     "not kvlane, or another release: see who connects to this port"},
    {Refusal::memories, Code::exhausted, "too_many_memories",
     "the peer registers more than peer_memories_max memories: raise it, or register fewer"},
}};
static_assert(in_order<&RefusalInfo::refusal>(kTable));

}  // namespace

const RefusalInfo& about(Refusal refusal) { return kTable[static_cast<std::size_t>(refusal)]; }

void Refusals::add(Refusal refusal, std::string_view remote, std::string_view why) {
  const RefusalInfo& info = about(refusal);
  counts_[static_cast<std::size_t>(refusal)].add();
  log(LogLevel::warning, "control.refused",
      {{"peer", remote},
       {"code", to_string(info.code)},
       {"cause", info.cause},
       {"why", why.empty() ? info.cause : why},
       {"hint", info.hint}});
}

void Refusals::add_to(Counts& counts) const {
  for (std::size_t i = 0; i < kRefusals; ++i) counts[i] += counts_[i].value();
}

void visit_refusals(MetricVisitor& visitor, const Refusals::Counts& counts) {
  for (const RefusalInfo& info : kTable) {
    visitor.counter("kvlane_control_refused_total",
                    "Control connections and messages refused, by cause.",
                    {{"cause", std::string(info.cause)}},
                    static_cast<double>(counts[static_cast<std::size_t>(info.refusal)]));
  }
}

}  // namespace kvl
