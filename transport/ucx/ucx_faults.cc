// The table of causes.
#include "transport/ucx/ucx_faults.h"

#include "transport/base/ordered_table.h"

namespace kvl::ucx {
namespace {

constexpr std::array<FaultInfo, kFaults> kTable{{
    {Fault::connection_lost, Code::peer_lost, "connection_lost",
     "the peer has ended, or the network between is broken: see its log", true},
    {Fault::unresponsive, Code::peer_lost, "unresponsive",
     "the peer's host or a path to it does not answer: see whether it lives", true},
    {Fault::unreachable, Code::peer_lost, "unreachable",
     "UCX finds no way between the two devices: compare ucx.transports, ucx.net_devices and "
     "ucx_info -d on both",
     true},
    {Fault::wrong_transport, Code::unsupported, "wrong_transport",
     "UCX would carry pages by another transport than was asked for, the log line says which: see "
     "ucx_info -d, or ask for that one",
     true},
    {Fault::flooded, Code::exhausted, "flooded",
     "the peer sends messages faster than this process polls, or asks for more than it may: see "
     "why "
     "it stands still; raise ucx.rx_depth",
     true},
    {Fault::refused, Code::permission, "refused",
     "UCX takes no such operation or name of memory: never retry", false},
    {Fault::no_resource, Code::exhausted, "no_resource",
     "UCX has no memory for an operation: see ulimit -l and the memory of this host", false},
    {Fault::other, Code::unavailable, "other",
     "the log line has UCX's error: ucx.log_level=info says more", true},
}};
static_assert(in_order<&FaultInfo::fault>(kTable));

}  // namespace

const FaultInfo& about(Fault fault) { return kTable[static_cast<std::size_t>(fault)]; }

Fault classify(ucs_status_t status) {
  switch (status) {
    case UCS_ERR_CONNECTION_RESET:
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_CANCELED:
    case UCS_ERR_IO_ERROR:
      return Fault::connection_lost;
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_TIMED_OUT:
      return Fault::unresponsive;
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_NO_DEVICE:
      return Fault::unreachable;
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
    case UCS_ERR_REJECTED:
    case UCS_ERR_OUT_OF_RANGE:
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_NOT_IMPLEMENTED:
      return Fault::refused;
    case UCS_ERR_NO_RESOURCE:
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_EXCEEDS_LIMIT:
      return Fault::no_resource;
    default:
      return Fault::other;
  }
}

}  // namespace kvl::ucx
