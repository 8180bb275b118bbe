// The engine: registered memory, ours and the peers'.
#include <algorithm>

#include "kvl/failure.h"
#include "kvl/log.h"
#include "transport/core/engine_impl.h"

namespace kvl {
namespace {

// How long deregister_memory lets transports finish what peers are just writing.
constexpr std::int64_t kRemoveWaitNs = 200'000'000;
// How long transfers to dropped memory may take to stop.
constexpr std::int64_t kEndWaitNs = 500'000'000;

}  // namespace

Result<MemoryHandle> EngineImpl::register_memory(const Memory& memory) {
  if (memory.data == nullptr || memory.bytes == 0) {
    return Status{Code::invalid_argument, "register empty memory"};
  }
  std::uint64_t handle = 0;
  {
    const Lock lock(mutex_);
    const auto [id, state] = memories_.insert();
    *state = MemoryState{};
    state->memory = memory;
    handle = id;
  }
  std::vector<MemoryId> ids;
  Status last{Code::unavailable, "no rail took the memory"};
  bool any = false;
  for (RailState& rail : rails_) {
    Result<MemoryId> added = rail.rail->link().add_memory(memory);
    if (!added) last = added.status();
    any |= added.ok();
    ids.push_back(added ? *added : MemoryId{});
  }
  const Lock lock(mutex_);
  MemoryState* const state = memories_.find(handle);
  if (!any) {
    memories_.erase(handle);
    return last;
  }
  state->ids = std::move(ids);
  state->ready = true;
  if (memory.access != Access::local) {
    peers_.for_each([&](std::uint64_t, Peer& peer) {
      if (peer.state != Peer::State::opening && peer.state != Peer::State::up) return;
      queue_message(peer, control::encode_memory(control::Type::memory_add, handle));
      for (Pair& pair : peer.pairs) {
        const bool joined = pair.state == Pair::State::up ||
                            (pair.state == Pair::State::opening && pair.link_peer.value != 0);
        if (joined) export_memory(peer, pair, handle);
      }
    });
  }
  return MemoryHandle{handle};
}

Status EngineImpl::deregister_memory(MemoryHandle handle) {
  std::vector<MemoryId> ids;
  {
    const Lock lock(mutex_);
    MemoryState* const state = memories_.find(handle.value);
    if (state == nullptr || !state->ready) return {Code::invalid_argument, "memory handle"};
    if (state->uses > 0) return {Code::exhausted, "a transfer uses this memory"};
    if (!state->dropping && state->memory.access != Access::local) {
      peers_.for_each([&](std::uint64_t, Peer& peer) {
        if (peer.state != Peer::State::opening && peer.state != Peer::State::up) return;
        queue_message(peer, control::encode_memory(control::Type::memory_drop, handle.value));
      });
    }
    state->dropping = true;
    ids = state->ids;
  }
  const std::int64_t give_up_ns = clock_.now_ns() + kRemoveWaitNs;
  for (std::size_t i = 0; i < rails_.size(); ++i) {
    if (ids[i].value == 0) continue;
    Status status = rails_[i].rail->link().remove_memory(ids[i]);
    while (status.code() == Code::exhausted && clock_.now_ns() < give_up_ns) {
      if (!threaded_) drive(true);
      std::this_thread::yield();
      status = rails_[i].rail->link().remove_memory(ids[i]);
    }
    if (status.code() == Code::exhausted) return status;  // call again: the rest is remembered
    const Lock lock(mutex_);
    if (MemoryState* const state = memories_.find(handle.value)) state->ids[i] = {};
  }
  const Lock lock(mutex_);
  memories_.erase(handle.value);
  return {};
}

void EngineImpl::export_memory(Peer& peer, Pair& pair, std::uint64_t handle) {
  const MemoryState* const state = memories_.find(handle);
  const MemoryId id = state->ids[pair.rail];
  const PairName name = name_of(peer, pair);
  rails_[pair.rail].rail->run([this, name, id, handle, link_peer = pair.link_peer](Link& link) {
    Blob blob;
    if (id.value != 0) {
      Result<Blob> made = link.export_memory(id, link_peer);
      if (made) blob = std::move(*made);
    }
    const Lock lock(mutex_);
    Peer* found = nullptr;
    Pair* mine = nullptr;
    if (!alive(name, found, mine)) return;
    queue_message(*found, control::encode_export(ref_of(*mine), handle, blob));
  });
}

void EngineImpl::export_all(Peer& peer, Pair& pair) {
  memories_.for_each([&](std::uint64_t handle, MemoryState& state) {
    if (state.ready && !state.dropping && state.memory.access != Access::local) {
      export_memory(peer, pair, handle);
    }
  });
}

void EngineImpl::on_memory_export(Peer& peer, const control::ExportMessage& message) {
  const auto memory = peer.memories.find(message.handle);
  Pair* const pair = find_pair(peer, message.pair);
  if (memory == peer.memories.end() || pair == nullptr ||
      pair->incarnation != message.pair.incarnation || pair->link_peer.value == 0) {
    return;  // dropped or closed meanwhile
  }
  const PairName name = name_of(peer, *pair);
  if (message.blob.empty()) {
    if (memory->second.ways[name.pair].state == RemoteMemory::State::ready) return;
    memory->second.ways[name.pair].state = RemoteMemory::State::refused;
    ++peer.version;
    kick(peer);
    return;
  }
  std::vector<std::byte> blob(message.blob.begin(), message.blob.end());
  rails_[pair->rail].rail->run([this, name, handle = message.handle, link_peer = pair->link_peer,
                                blob = std::move(blob)](Link& link) {
    const Result<RemoteId> imported = link.import_memory(link_peer, blob);
    const Lock lock(mutex_);
    Peer* found = nullptr;
    Pair* mine = nullptr;
    if (!alive(name, found, mine)) return;
    const auto entry = found->memories.find(handle);
    // Dropped meanwhile, or exported before: a name that nobody keeps would stay in the Link.
    if (entry == found->memories.end() ||
        entry->second.ways[name.pair].state == RemoteMemory::State::ready) {
      if (imported) link.drop_memory(*imported);
      return;
    }
    RemoteMemory::Way& way = entry->second.ways[name.pair];
    way.state = imported ? RemoteMemory::State::ready : RemoteMemory::State::refused;
    way.id = imported ? *imported : RemoteId{};
    if (!imported) {
      log(LogLevel::info, "memory.not_reachable",
          {{"peer", found->address},
           {"transport", rail_names_[mine->rail].transport},
           {"code", to_string(imported.code())},
           {"why", imported.status().to_string()},
           {"hint", remedy(imported.code())}});
    }
    ++found->version;
    kick(*found);
  });
}

void EngineImpl::on_memory_drop(Peer& peer, std::uint64_t handle) {
  const auto memory = peer.memories.find(handle);
  if (memory == peer.memories.end()) return;
  for (std::size_t i = 0; i < memory->second.ways.size(); ++i) {
    const RemoteMemory::Way& way = memory->second.ways[i];
    if (way.state != RemoteMemory::State::ready) continue;
    rails_[peer.pairs[i].rail].rail->run([id = way.id](Link& link) { link.drop_memory(id); });
  }
  peer.memories.erase(memory);
  ++peer.version;
  // What still wants to go there ends now; what is posted is answered by the target.
  for (const std::uint64_t id : std::vector<std::uint64_t>(peer.transfers)) {
    TransferState* const transfer = transfers_.find(id);
    if (transfer == nullptr || transfer->moved_all()) continue;
    const auto uses =
        std::find(transfer->remotes.begin(), transfer->remotes.end(), MemoryHandle{handle});
    if (uses != transfer->remotes.end()) end_transfer(*transfer, Code::not_found, kEndWaitNs);
  }
  kick(peer);
}

}  // namespace kvl
