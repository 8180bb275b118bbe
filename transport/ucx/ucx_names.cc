// Memory: ours as peers know it, and theirs as we do.
#include <algorithm>

#include "transport/ucx/ucx_link.h"

namespace kvl::ucx {

Result<MemoryId> UcxLink::add_memory(const Memory& memory) {
  if (!context_.memory_ops.direct(memory.kind)) {
    return Status{Code::unsupported, "memory of a GPU over UCX"};
  }
  Result<LocalMemory> entry = enrol(*worker_, memory, copies_);
  if (!entry.ok()) return entry.status();
  return memory_.insert(std::move(*entry));
}

Result<Blob> UcxLink::export_memory(MemoryId id, PeerId peer_id) {
  const Peer* const peer = find_peer(peer_id);
  if (peer == nullptr) return Status{Code::invalid_argument, "stale peer"};
  const auto name = memory_.tell(id, peer_id.value, [&](const LocalMemory& entry) {
    const auto address = reinterpret_cast<std::uintptr_t>(entry.memory.data);
    return RemoteName{entry.memory.access, entry.serial, copies_ ? id.value : address,
                      entry.memory.bytes, entry.key};
  });
  if (!name.ok()) return name.status();
  return encode(*name, peer->token);
}

Result<RemoteId> UcxLink::import_memory(PeerId peer_id, std::span<const std::byte> blob) {
  const Peer* const peer = find_peer(peer_id);
  if (peer == nullptr) return Status{Code::invalid_argument, "stale peer"};
  return remotes_.import(peer_id, peer->owner(), blob);
}

// Only of a verified name: UCX trusts what it unpacks.
bool UcxLink::unpack(const Peer& peer, RemoteKey& imported) {
  if (imported.key != nullptr) return true;
  ucp_rkey_h key = nullptr;
  const ucs_status_t status = api().ep_rkey_unpack(peer.ep, imported.name.key.data(), &key);
  if (status == UCS_OK) {
    imported.key = {key, DestroyKey{api().rkey_destroy}};
    return true;
  }
  faults_[static_cast<std::size_t>(classify(status))].add();
  return false;
}

void UcxLink::queue_forgotten() {
  memory_.take_forgotten(forgotten_);
  for (const auto& [id, serial] : forgotten_) {
    Peer* const peer = find_peer({id});
    if (peer != nullptr && peer->state != PeerState::closing) {
      peer->owed.push_back({MessageType::forget, serial});
    }
  }
  forgotten_.clear();
}

void UcxLink::visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const {
  LabelledMetrics metrics(visitor, labels);
  metrics.count("kvlane_ucx_written_bytes_total", "Bytes written to peers", written_bytes_);
  metrics.count("kvlane_ucx_read_bytes_total", "Bytes read from peers", read_bytes_);
  metrics.count("kvlane_ucx_operations_total", "Operations that UCX took", posted_);
  metrics.count("kvlane_ucx_again_total", "Operations that UCX could not take at once", again_);
  metrics.count("kvlane_ucx_flushes_total", "Flushes, which say that puts have arrived", flushes_);
  metrics.count("kvlane_ucx_forced_closes_total",
                "Endpoints that were closed before all had arrived", forced_);
  batches_.visit(metrics, "kvlane_ucx_batches_ok_total", "kvlane_ucx_batches_failed_total");
  metrics.count("kvlane_ucx_notes_sent_total", "Notes sent", notes_sent_);
  metrics.count("kvlane_ucx_notes_received_total", "Notes received", notes_received_);
  metrics.count("kvlane_ucx_refused_runs_total", "Runs of peers that may not be", refused_runs_);
  metrics.count("kvlane_ucx_refused_names_total", "Names of memory that were not made for us",
                remotes_.refused());
  peers_up_.visit(visitor, labels);
  for (std::size_t i = 0; i < kFaults; ++i) {
    metrics.by_cause("kvlane_ucx_faults_total", "Operations and peers that failed, by cause",
                     about(static_cast<Fault>(i)).cause, faults_[i]);
  }
  for (std::size_t i = 0; i < kStrangers; ++i) {
    metrics.by_cause("kvlane_ucx_strangers_total", "Messages that were no peer's of ours, by cause",
                     cause_of(static_cast<Stranger>(i)), strangers_[i]);
  }
}

}  // namespace kvl::ucx
