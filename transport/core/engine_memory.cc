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
// Registering that takes longer is told, with what it costs.
constexpr std::int64_t kSlowNs = 200'000'000;
// From here on several devices are asked at once.
constexpr std::uint64_t kParallelBytes = 64ULL << 20;

// Its Link knows the peer, so that names of memory can be made for it.
bool joined(const Pair& pair) {
  return pair.state == Pair::State::up ||
         (pair.state == Pair::State::opening && pair.link_peer.value != 0);
}

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
  std::vector<MemoryId> ids(rails_.size());
  Status last{Code::unavailable, "no rail took the memory"};
  register_near(memory, ids, last);
  const Lock lock(mutex_);
  MemoryState* const state = memories_.find(handle);
  if (std::ranges::all_of(ids, [](MemoryId id) { return id.value == 0; })) {
    memories_.erase(handle);
    return last;
  }
  state->ids = std::move(ids);
  state->ready = true;
  state->reserves_due = registrar_thread_.joinable();
  registrar_.notify_all();
  if (memory.access != Access::local) {
    peers_.for_each([&](std::uint64_t, Peer& peer) {
      if (peer.state != Peer::State::opening && peer.state != Peer::State::up) return;
      queue_message(peer, control::encode_memory(control::Type::memory_add, handle));
      for (Pair& pair : peer.pairs) {
        if (joined(pair)) export_memory(peer, pair, handle);
      }
    });
  }
  return MemoryHandle{handle};
}

Result<MemoryId> EngineImpl::register_with(std::size_t index, const Memory& memory) {
  RailState& rail = rails_[index];
  const std::int64_t begin_ns = clock_.now_ns();
  Result<MemoryId> added = rail.rail->link().add_memory(memory);
  const std::int64_t took_ns = clock_.now_ns() - begin_ns;
  rail.registration_ns.add(static_cast<std::uint64_t>(took_ns));
  if (added.ok()) rail.registered_bytes.add(memory.bytes);
  if (took_ns >= kSlowNs) {
    const double gib = static_cast<double>(memory.bytes) / (1 << 30);
    log(LogLevel::info, "memory.registered",
        {{"transport", rail_names_[index].transport},
         {"device", rail_names_[index].device},
         {"bytes", memory.bytes},
         {"seconds", static_cast<double>(took_ns) / 1e9},
         {"seconds_per_gib", static_cast<double>(took_ns) / 1e9 / gib}});
  }
  return added;
}

// Pinning takes seconds for each device: with large memory several devices at once.
void EngineImpl::register_near(const Memory& memory, std::vector<MemoryId>& ids, Status& last) {
  std::vector<std::size_t> near;
  for (std::size_t i = 0; i < rails_.size(); ++i) {
    // Without threads of ours nobody would come back for the reserves.
    if (rail_names_[i].nearness == 0 || !threaded_) near.push_back(i);
  }
  std::vector<Status> why(near.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t k = next++; k < near.size(); k = next++) {
      const Result<MemoryId> added = register_with(near[k], memory);
      why[k] = added.ok() ? Status{} : added.status();
      if (added.ok()) ids[near[k]] = *added;
    }
  };
  const std::size_t most = threaded_ && memory.bytes >= kParallelBytes
                               ? static_cast<std::size_t>(config_.register_threads)
                               : 1;
  std::vector<std::thread> helpers;
  for (std::size_t i = 1; i < std::min(most, near.size()); ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  for (const Status& status : why) {
    if (!status.ok()) last = status;
  }
}

// The registrar: what is registered already serves; reserves get it while nobody waits.
void EngineImpl::register_reserves() {
  Lock lock(mutex_);
  while (!stopping_.load()) {
    std::uint64_t handle = 0;
    Memory memory;
    memories_.for_each([&](std::uint64_t id, MemoryState& state) {
      if (handle != 0 || !state.reserves_due || state.dropping) return;
      handle = id;
      memory = state.memory;
      state.reserves_due = false;
    });
    if (handle == 0) {
      registrar_.wait(lock);
      continue;
    }
    registering_ = handle;
    for (std::size_t i = 0; i < rails_.size() && !stopping_.load(); ++i) {
      if (rail_names_[i].nearness == 0) continue;
      lock.unlock();
      const Result<MemoryId> added = register_with(i, memory);
      lock.lock();
      if (!added.ok()) continue;
      memories_.find(handle)->ids[i] = *added;  // deregister_memory waits for us
      export_to_all(handle, i);
    }
    registering_ = 0;
    registrar_.notify_all();
  }
}

// A rail has the memory only now: peers on it hear of it.
void EngineImpl::export_to_all(std::uint64_t handle, std::size_t rail) {
  const MemoryState& state = *memories_.find(handle);
  if (state.dropping || state.memory.access == Access::local) return;
  peers_.for_each([&](std::uint64_t, Peer& peer) {
    for (Pair& pair : peer.pairs) {
      if (pair.rail == rail && joined(pair)) export_memory(peer, pair, handle);
    }
    ++peer.version;  // transfers may look for it as a way
    kick(peer);
  });
}

Status EngineImpl::deregister_memory(MemoryHandle handle) {
  std::vector<MemoryId> ids;
  {
    Lock lock(mutex_);
    MemoryState* state = memories_.find(handle.value);
    if (state == nullptr || !state->ready) return {Code::invalid_argument, "memory handle"};
    if (state->uses > 0) return {Code::exhausted, "a transfer uses this memory"};
    // The registrar is with a device: what it gets there has to go as well.
    state->reserves_due = false;
    registrar_.wait(lock, [&] { return registering_ != handle.value; });
    state = memories_.find(handle.value);
    if (state == nullptr) return {Code::invalid_argument, "memory handle"};
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
    if (memory->second.ways[name.pair].state == PeerMemory::State::ready) return;
    memory->second.ways[name.pair].state = PeerMemory::State::refused;
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
        entry->second.ways[name.pair].state == PeerMemory::State::ready) {
      if (imported) link.drop_memory(*imported);
      return;
    }
    PeerMemory::Way& way = entry->second.ways[name.pair];
    way.state = imported ? PeerMemory::State::ready : PeerMemory::State::refused;
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
    const PeerMemory::Way& way = memory->second.ways[i];
    if (way.state != PeerMemory::State::ready) continue;
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
