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
  Result<RemoteName> name = decode_name(blob);
  if (!name.ok()) {
    refused_names_.add();
    return name.status();
  }
  ImportedMemory imported;
  imported.peer = peer_id;
  imported.name = std::move(*name);
  imported.blob.assign(blob.begin(), blob.end());
  if (peer->accepted && !verify(imported)) {
    return Status{Code::permission, "a name of memory that was not made for us"};
  }
  const auto [id, slot] = imported_.insert();
  *slot = std::move(imported);
  return RemoteId{id};
}

// Before the peer's offer is there nothing can be said, and nothing is posted either.
bool UcxLink::verify(ImportedMemory& imported) {
  if (imported.verified) return true;
  const Peer* const peer = find_peer(imported.peer);
  if (peer == nullptr || !peer->accepted) return peer != nullptr;
  imported.verified = sealed_by(imported.blob, peer->remote);
  if (!imported.verified) refused_names_.add();
  return imported.verified;
}

// Only of a verified name: UCX trusts what it unpacks.
bool UcxLink::unpack(const Peer& peer, ImportedMemory& imported) {
  if (imported.key != nullptr) return true;
  const ucs_status_t status =
      api().ep_rkey_unpack(peer.ep, imported.name.key.data(), &imported.key);
  if (status == UCS_OK) return true;
  imported.key = nullptr;
  faults_[static_cast<std::size_t>(classify(status))].add();
  return false;
}

void UcxLink::erase(std::uint64_t remote) {
  ImportedMemory& imported = *imported_.find(remote);
  if (imported.key != nullptr) api().rkey_destroy(imported.key);
  imported = {};
  imported_.erase(remote);
}

void UcxLink::drop_memory(RemoteId id) {
  ImportedMemory* const imported = imported_.find(id.value);
  if (imported == nullptr) return;
  imported->dropped = true;
  if (imported->uses == 0) erase(id.value);
}

void UcxLink::release(const Batch& batch) {
  for (const RemoteId id : batch.remotes) {
    ImportedMemory& imported = *imported_.find(id.value);
    if (--imported.uses == 0 && imported.dropped) erase(id.value);
  }
  memory_.release(batch.locals);
}

// The owner has removed it. Operations to it would fail there at best.
void UcxLink::forget(const Peer& peer, std::uint64_t serial) {
  imported_.for_each([&](std::uint64_t, ImportedMemory& imported) {
    if (imported.peer == peer.id && imported.name.serial == serial) imported.gone = true;
  });
}

// Everything of a peer that has no operations any more.
void UcxLink::forget_all(const Peer& peer) {
  std::vector<std::uint64_t> names;
  imported_.for_each([&](std::uint64_t id, const ImportedMemory& imported) {
    if (imported.peer == peer.id) names.push_back(id);
  });
  for (const std::uint64_t id : names) erase(id);
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
                refused_names_);
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
