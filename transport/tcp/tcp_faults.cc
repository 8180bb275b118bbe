// The table of causes.
#include "transport/tcp/tcp_faults.h"

#include "transport/base/ordered_table.h"

namespace kvl::tcp {
namespace {

constexpr std::array<LaneFaultInfo, kLaneFaults> kTable{{
    {LaneFault::crowded, Code::exhausted, "crowded",
     "256 connections to the data port wait with their greeting: see who floods it", true},
    {LaneFault::timed_out, Code::timed_out, "timed_out",
     "the other side is slower than tcp.connect_timeout_ms, or packets are lost between", false},
    {LaneFault::closed, Code::peer_lost, "closed",
     "the other side gave up first: see its log, if no peer follows", false},
    {LaneFault::malformed, Code::invalid_argument, "malformed",
     "not kvlane, or another release: see who connects to the data port", true},
    {LaneFault::unknown_token, Code::permission, "unknown_token",
     "it is in no session with us: see who connects to the data port", true},
    {LaneFault::wrong_proof, Code::permission, "wrong_proof",
     "it has a token of ours and not the key: somebody listens between the hosts", true},
    {LaneFault::stale, Code::aborted, "stale", "nothing: the peer has dialed again since", false},
    {LaneFault::refused, Code::unavailable, "refused",
     "nobody listens there: the peer has ended, or a firewall rejects its data port", false},
    {LaneFault::unreachable, Code::unavailable, "unreachable",
     "see the route and the firewall between, and tcp.bind and tcp.interface of the peer", false},
}};
static_assert(in_order<&LaneFaultInfo::fault>(kTable));

}  // namespace

const LaneFaultInfo& about(LaneFault fault) { return kTable[static_cast<std::size_t>(fault)]; }

}  // namespace kvl::tcp
