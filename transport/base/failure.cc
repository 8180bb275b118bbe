// The table of failures. docs/failures.md shows the same; a test compares them.
#include "kvl/failure.h"

#include <algorithm>
#include <array>

namespace kvl {
namespace {

constexpr std::array<Failure, 11> kFailures{{
    {Code::invalid_argument, "the call or message contradicts itself, the layout or an earlier one",
     "never retry; fix the call", "compare versions, models and layouts of both sides",
     "kvlane_handoffs_ended_total, kvlane_handoff_messages_bad_total, "
     "kvlane_control_refused_total"},
    {Code::not_found, "no such peer, memory, page, room or worker; it may have ended before",
     "look it up again, then open anew",
     "see whether the worker restarted, and whether decode opens rooms within handoff.early_ms",
     "kvlane_handoffs_ended_total, kvlane_handoff_messages_stale_total"},
    {Code::unsupported, "this device, transport, layout or protocol version cannot do it",
     "choose another peer or transport", "run kvlane doctor PEER; run one version on both sides",
     "kvlane_handoff_peers_refused_total, kvlane_peers_lost_total"},
    {Code::exhausted, "a bounded resource is full; nothing was changed", "retry after poll()",
     "raise the limit that the context names, or send less at a time",
     "kvlane_control_refused_total, kvlane_handoff_early_dropped_total, "
     "kvlane_transfers_ended_total"},
    {Code::unavailable, "this path is not usable now", "retry elsewhere",
     "see whether the peer listens and is reachable: kvlane doctor PEER",
     "kvlane_peers_unreachable_total, kvlane_transfers_ended_total, "
     "kvlane_rail_piece_failures_total"},
    {Code::peer_lost, "the other process is gone or silent",
     "retry with another peer; reuse pages when they are released",
     "see why the peer ended: its log, the kernel's (out of memory), the network between",
     "kvlane_peers_lost_total, kvlane_transfers_ended_total, kvlane_handoffs_ended_total"},
    {Code::timed_out, "the deadline passed; the work was stopped",
     "retry when the request has time left",
     "see which side was late (the reason says it); compare with handoff.deadline_ms",
     "kvlane_handoffs_ended_total, kvlane_transfers_ended_total"},
    {Code::aborted, "somebody asked for it to stop", "nothing, it was asked for",
     "nothing; the side that asked logs why", "kvlane_handoffs_ended_total"},
    {Code::permission, "refused by the other side or by the kernel", "do not retry",
     "compare users and secrets of both sides; run kvlane doctor on each",
     "kvlane_control_refused_total, kvlane_tcp_refused_runs_total, "
     "kvlane_shm_refused_memory_total"},
    {Code::corrupt, "bytes failed a check, and again on another path; they were not delivered",
     "compute the pages again",
     "look at memory errors (edac), NIC and driver of the peer and path that the counter names",
     "kvlane_handoff_crc_mismatches_total, kvlane_handoff_crc_retries_total"},
    {Code::internal, "a defect of kvlane", "do not retry",
     "report it with the log and kvlane info --json", "kvlane_transfers_ended_total"},
}};
static_assert(kFailures.back().code == Code::internal, "append the new code here");

}  // namespace

std::span<const Failure> failures() { return kFailures; }

std::string_view remedy(Code code) {
  const auto found = std::ranges::find(kFailures, code, &Failure::code);
  return found == kFailures.end() ? "unknown code: the other side may be of a later version"
                                  : found->remedy;
}

}  // namespace kvl
