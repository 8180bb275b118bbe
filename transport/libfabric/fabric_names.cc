// Memory: ours as peers know it, and theirs as we do.
#include <algorithm>

#include "transport/libfabric/fabric_link.h"

namespace kvl::libfabric {

Result<MemoryId> FabricLink::add_memory(const Memory& memory) {
  if (!config_.hmem && !context_.memory_ops.direct(memory.kind)) {
    return Status{Code::unsupported, "memory of a GPU: set libfabric.hmem"};
  }
  return memory_.add(memory);
}

Result<Blob> FabricLink::export_memory(MemoryId id, PeerId peer_id) {
  const Peer* const peer = find_peer(peer_id);
  if (peer == nullptr) return Status{Code::invalid_argument, "stale peer"};
  const Result<RemoteName> name = memory_.tell(id, peer_id.value);
  if (!name.ok()) return name.status();
  return encode(*name, peer->token);
}

Result<RemoteId> FabricLink::import_memory(PeerId peer_id, std::span<const std::byte> blob) {
  const Peer* const peer = find_peer(peer_id);
  if (peer == nullptr) return Status{Code::invalid_argument, "stale peer"};
  return remotes_.import(peer_id, peer->owner(), blob);
}

void FabricLink::queue_forgotten() {
  memory_.take_forgotten(forgotten_);
  for (const auto& [id, serial] : forgotten_) {
    Peer* const peer = find_peer({id});
    if (peer != nullptr && peer->state != PeerState::closing) {
      peer->owed.push_back({MessageType::forget, serial});
    }
  }
  forgotten_.clear();
  rounds_.all();
}

void FabricLink::visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const {
  LabelledMetrics metrics(visitor, labels);
  metrics.count("kvlane_libfabric_written_bytes_total", "Bytes written to peers", written_bytes_);
  metrics.count("kvlane_libfabric_read_bytes_total", "Bytes read from peers", read_bytes_);
  metrics.count("kvlane_libfabric_operations_total", "Operations that the provider took", posted_);
  metrics.count("kvlane_libfabric_again_total",
                "Operations that the provider could not take at once", again_);
  metrics.count("kvlane_libfabric_doorbells_total",
                "Empty messages that closed a run of operations", doorbells_);
  metrics.count("kvlane_libfabric_endpoints_replaced_total",
                "Endpoints closed because operations to a lost peer did not end",
                endpoints_replaced_);
  metrics.count("kvlane_libfabric_peers_moved_total",
                "Peers that went on after one of the two sides had replaced its endpoint",
                peers_moved_);
  batches_.visit(metrics, "kvlane_libfabric_batches_ok_total",
                 "kvlane_libfabric_batches_failed_total");
  metrics.count("kvlane_libfabric_notes_sent_total", "Notes sent", notes_sent_);
  metrics.count("kvlane_libfabric_notes_received_total", "Notes received", notes_received_);
  metrics.count("kvlane_libfabric_notes_counted_total",
                "Notes received whose bytes were known by counted immediates", notes_counted_);
  metrics.count("kvlane_libfabric_immediates_total", "Immediates of peers counted", immediates_);
  metrics.count("kvlane_libfabric_peers_up_total", "Peers that came up", peers_up_);
  metrics.count("kvlane_libfabric_refused_names_total", "Names of memory that were not made for us",
                remotes_.refused());
  for (std::size_t i = 0; i < kFaults; ++i) {
    metrics.by_cause("kvlane_libfabric_faults_total", "Operations that failed, by cause",
                     about(static_cast<Fault>(i)).cause, faults_[i]);
  }
  for (std::size_t i = 0; i < kStrangers; ++i) {
    metrics.by_cause("kvlane_libfabric_strangers_total",
                     "Messages that were no peer's of ours, by cause",
                     cause_of(static_cast<Stranger>(i)), strangers_[i]);
  }
}

}  // namespace kvl::libfabric
