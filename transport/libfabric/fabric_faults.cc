// The table of causes.
#include "transport/libfabric/fabric_faults.h"

#include <rdma/fi_errno.h>

#include "transport/base/ordered_table.h"

namespace kvl::libfabric {
namespace {

constexpr std::array<FaultInfo, kFaults> kTable{{
    {Fault::stale_key, Code::permission, "stale_key",
     "the peer has removed that memory, or a forged name was used: never retry", false},
    {Fault::restarted_peer, Code::peer_lost, "restarted_peer",
     "the peer's queue pair is gone, it was restarted: nothing, it is dialed again", true},
    {Fault::receiver_not_ready, Code::unavailable, "receiver_not_ready",
     "the peer's process does not poll: see why it stands still; raise libfabric.rx_depth there",
     true},
    {Fault::unresponsive, Code::peer_lost, "unresponsive",
     "the peer's host or a path to it does not answer: see whether it lives", true},
    {Fault::unknown_peer, Code::peer_lost, "unknown_peer",
     "the peer has no address of ours, it has closed this session: see its log", true},
    {Fault::unreachable, Code::peer_lost, "unreachable",
     "EFA needs a security group that lets all traffic from and to itself pass, both ways, and one "
     "subnet",
     true},
    {Fault::connection_lost, Code::peer_lost, "connection_lost",
     "the peer has ended, or the network between is broken: see its log", true},
    {Fault::other, Code::unavailable, "other",
     "the log line has libfabric's error: FI_LOG_LEVEL=warn says more", true},
}};
static_assert(in_order<&FaultInfo::fault>(kTable));

// Status codes of the device's completions.
constexpr Fault efa_fault(int status) {
  switch (status) {
    case 7:
      return Fault::stale_key;
    case 9:
      return Fault::restarted_peer;
    case 10:
      return Fault::receiver_not_ready;
    case 13:
      return Fault::unresponsive;
    case 14:
      return Fault::unknown_peer;
    case 15:
      return Fault::unreachable;
    default:
      return Fault::other;
  }
}

}  // namespace

const FaultInfo& about(Fault fault) { return kTable[static_cast<std::size_t>(fault)]; }

Fault classify(bool efa, int error, int provider_error) {
  if (efa) {
    const Fault fault = efa_fault(provider_error);
    if (fault != Fault::other) return fault;
  }
  switch (error) {
    case FI_EACCES:
    case FI_EPERM:
    case FI_EKEYREJECTED:
    case FI_EINVAL:
      return Fault::stale_key;
    case FI_EHOSTUNREACH:
    case FI_ENETUNREACH:
      return Fault::unreachable;
    case FI_ENORX:
      return Fault::receiver_not_ready;
    case FI_ENOTCONN:
    case FI_ECONNRESET:
    case FI_ECONNABORTED:
    case FI_ECONNREFUSED:
    case FI_ESHUTDOWN:
    case FI_ETIMEDOUT:
    case FI_ECANCELED:
    case FI_EIO:
      return Fault::connection_lost;
    default:
      return Fault::other;
  }
}

}  // namespace kvl::libfabric
