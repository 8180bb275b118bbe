// The table of causes. Every one of them costs the connection: a queue pair that has met an error
// does nothing more.
#include "transport/verbs/verbs_faults.h"

#include "transport/base/ordered_table.h"

namespace kvl::verbs {
namespace {

constexpr std::array<FaultInfo, kFaults> kTable{{
    {Fault::stale_key, Code::permission, "stale_key",
     "the peer has removed that memory, or a forged name was used: never retry"},
    {Fault::unresponsive, Code::peer_lost, "unresponsive",
     "the peer has ended, or no packet passes between the two ports: see its log, and whether "
     "ibv_rc_pingpong works"},
    {Fault::receiver_not_ready, Code::unavailable, "receiver_not_ready",
     "the peer's process does not poll: see why it stands still; raise verbs.rq_depth there"},
    {Fault::refused, Code::peer_lost, "refused",
     "the peer's device refuses a request that it should take: run one release on both sides"},
    {Fault::local, Code::unavailable, "local",
     "our own device refuses a request: the log line has its error; see dmesg and ibv_devinfo -v"},
    {Fault::flushed, Code::peer_lost, "flushed",
     "the queue pair was moved to the error state, by the device or by what the peer sent: see its "
     "log"},
    {Fault::port_down, Code::unavailable, "port_down",
     "the port lost its link: see rdma link, ip link, the cable and the switch"},
    {Fault::device_gone, Code::unavailable, "device_gone",
     "the device was reset or removed: see dmesg; restart this process when it is back"},
    {Fault::other, Code::unavailable, "other",
     "the log line has the device's status and vendor error: see its manual"},
}};
static_assert(in_order<&FaultInfo::fault>(kTable));

}  // namespace

const FaultInfo& about(Fault fault) { return kTable[static_cast<std::size_t>(fault)]; }

Fault classify(ibv_wc_status status) {
  switch (status) {
    case IBV_WC_REM_ACCESS_ERR:
      return Fault::stale_key;
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
      return Fault::unresponsive;
    case IBV_WC_RNR_RETRY_EXC_ERR:
      return Fault::receiver_not_ready;
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
    case IBV_WC_REM_ABORT_ERR:
    case IBV_WC_BAD_RESP_ERR:
      return Fault::refused;
    case IBV_WC_LOC_LEN_ERR:
    case IBV_WC_LOC_QP_OP_ERR:
    case IBV_WC_LOC_PROT_ERR:
    case IBV_WC_LOC_ACCESS_ERR:
      return Fault::local;
    case IBV_WC_WR_FLUSH_ERR:
      return Fault::flushed;
    default:
      return Fault::other;
  }
}

}  // namespace kvl::verbs
