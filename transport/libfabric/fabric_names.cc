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
}

void FabricLink::visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const {
  const auto count = [&](std::string_view name, std::string_view help, const Counter& counter) {
    visitor.counter(name, help, labels, static_cast<double>(counter.value()));
  };
  count("kvlane_libfabric_written_bytes_total", "Bytes written to peers", written_bytes_);
  count("kvlane_libfabric_read_bytes_total", "Bytes read from peers", read_bytes_);
  count("kvlane_libfabric_operations_total", "Operations that the provider took", posted_);
  count("kvlane_libfabric_again_total", "Operations that the provider could not take at once",
        again_);
  count("kvlane_libfabric_doorbells_total", "Empty messages that closed a run of operations",
        doorbells_);
  count("kvlane_libfabric_endpoints_replaced_total",
        "Endpoints closed because operations to a lost peer did not end", endpoints_replaced_);
  count("kvlane_libfabric_batches_ok_total", "Batches that ended ok", batches_ok_);
  count("kvlane_libfabric_notes_sent_total", "Notes sent", notes_sent_);
  count("kvlane_libfabric_notes_received_total", "Notes received", notes_received_);
  count("kvlane_libfabric_peers_up_total", "Peers that came up", peers_up_);
  count("kvlane_libfabric_refused_names_total", "Names of memory that were not made for us",
        remotes_.refused());
  MetricLabels with_cause = labels;
  with_cause.emplace_back("cause", "");
  const auto by_cause = [&](std::string_view name, std::string_view help, std::string_view cause,
                            const Counter& counter) {
    with_cause.back().second = std::string(cause);
    visitor.counter(name, help, with_cause, static_cast<double>(counter.value()));
  };
  for (std::size_t i = 0; i < batches_failed_.size(); ++i) {
    const auto code = static_cast<Code>(i);
    // A series appears with its first; one is there from the beginning.
    if (code != Code::peer_lost && batches_failed_[i].value() == 0) continue;
    by_cause("kvlane_libfabric_batches_failed_total", "Batches that ended otherwise, by cause",
             to_string(code), batches_failed_[i]);
  }
  for (std::size_t i = 0; i < kFaults; ++i) {
    by_cause("kvlane_libfabric_faults_total", "Operations that failed, by cause",
             about(static_cast<Fault>(i)).cause, faults_[i]);
  }
  for (std::size_t i = 0; i < kStrangers; ++i) {
    by_cause("kvlane_libfabric_strangers_total", "Messages that were no peer's of ours, by cause",
             cause_of(static_cast<Stranger>(i)), strangers_[i]);
  }
}

}  // namespace kvl::libfabric
