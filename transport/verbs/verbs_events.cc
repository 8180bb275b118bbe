// What the device says beside completions, and what the Link says of itself.
#include <algorithm>

#include "kvl/log.h"
#include "transport/verbs/verbs_link.h"

namespace kvl::verbs {

// True: there was something.
bool VerbsLink::take_device_events() {
  const VerbsApi& api = port_->api();
  bool any = false;
  ibv_async_event event{};
  while (!gone_ && api.get_async_event(port_->context(), &event) == 0) {
    any = true;
    hear_event(event);
    api.ack_async_event(&event);  // a queue pair is not destroyed before its events are
  }
  return any;
}

void VerbsLink::hear_event(const ibv_async_event& event) {
  const auto fails = [&](Fault fault) { faults_[static_cast<std::size_t>(fault)].add(); };
  switch (event.event_type) {
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
      for (Peer* const peer : rounds_.peers()) {
        if (!peer->qp || peer->qp->number() != event.element.qp->qp_num) continue;
        if (peer->state == PeerState::closing) continue;
        fails(Fault::flushed);
        lose(*peer, Fault::flushed, event.event_type, 0);
      }
      return;
    case IBV_EVENT_PORT_ERR:
      if (event.element.port_num == port_->number()) lose_all(Fault::port_down, event.event_type);
      return;
    case IBV_EVENT_DEVICE_FATAL:
    case IBV_EVENT_CQ_ERR:
    case IBV_EVENT_SRQ_ERR:
      gone_ = true;
      lose_all(Fault::device_gone, event.event_type);
      return;
    case IBV_EVENT_PORT_ACTIVE:
    case IBV_EVENT_GID_CHANGE:
    case IBV_EVENT_LID_CHANGE: {
      // For the offers that come; connections there are keep their addresses.
      if (const Status status = port_->refresh(); !status.ok()) {
        log(LogLevel::warning, "verbs.no_address",
            {{"device", device_.name},
             {"code", to_string(status.code())},
             {"what", status.context()},
             {"hint",
              "peers that are up stay; new ones do not come up before the port has an address: see "
              "rdma link and ip address"}});
      }
      return;
    }
    default:
      return;
  }
}

void VerbsLink::lose_all(Fault fault, int event) {
  faults_[static_cast<std::size_t>(fault)].add();
  const FaultInfo& info = about(fault);
  log(LogLevel::error, "verbs.device_failed",
      {{"device", device_.name},
       {"code", to_string(info.code)},
       {"cause", info.cause},
       {"event", event},
       {"hint", info.hint}});
  for (Peer* const peer : rounds_.peers()) begin_close(*peer, Code::peer_lost);
}

void VerbsLink::visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const {
  LabelledMetrics metrics(visitor, labels);
  metrics.count("kvlane_verbs_written_bytes_total", "Bytes written to peers", written_bytes_);
  metrics.count("kvlane_verbs_read_bytes_total", "Bytes read from peers", read_bytes_);
  metrics.count("kvlane_verbs_requests_total", "Work requests that the device took", posted_);
  metrics.count("kvlane_verbs_chains_total", "Calls that posted them", chains_);
  metrics.count("kvlane_verbs_completions_total", "Completions, of receives as well", completions_);
  metrics.count("kvlane_verbs_again_total", "Chains that the device could not take at once",
                again_);
  batches_.visit(metrics, "kvlane_verbs_batches_ok_total", "kvlane_verbs_batches_failed_total");
  metrics.count("kvlane_verbs_notes_sent_total", "Notes sent", notes_sent_);
  metrics.count("kvlane_verbs_notes_received_total", "Notes received", notes_received_);
  metrics.count("kvlane_verbs_peers_up_total", "Peers that came up", peers_up_);
  metrics.count("kvlane_verbs_refused_names_total", "Names of memory that were not made for us",
                remotes_.refused());
  for (std::size_t i = 0; i < kFaults; ++i) {
    metrics.by_cause("kvlane_verbs_faults_total", "Requests and devices that failed, by cause",
                     about(static_cast<Fault>(i)).cause, faults_[i]);
  }
  for (std::size_t i = 0; i < kStrangers; ++i) {
    metrics.by_cause("kvlane_verbs_strangers_total",
                     "Messages that were no peer's of ours, by cause",
                     cause_of(static_cast<Stranger>(i)), strangers_[i]);
  }
}

}  // namespace kvl::verbs
