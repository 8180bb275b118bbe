// Memory: ours registered and exported, the peers' imported.
#include <sched.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kvl/log.h"
#include "transport/shm/shm_link.h"

namespace kvl::shm {
namespace {

constexpr std::int64_t kRevokeNs = 5'000'000;  // a peer's slice of copying is far shorter

}  // namespace

Result<MemoryId> ShmLink::add_memory(const Memory& memory) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return table_.add(memory, context_.memory_ops.direct(memory.kind));
}

// With mutex_ held: does any process touch this memory of ours right now?
bool ShmLink::touched_by_peers(std::uint32_t memory) {
  std::erase_if(ghosts_, [](const Ghost& ghost) {
    return !ghost.view.touches_any() || (ghost.pidfd && process_exited(ghost.pidfd.get()));
  });
  for (const Ghost& ghost : ghosts_) {
    if (ghost.view.touches(memory)) return true;
  }
  bool touched = false;
  peers_.for_each([&](std::uint64_t, const std::unique_ptr<Peer>& peer) {
    if (!peer->view || !peer->view.touches(memory)) return;
    touched = touched || !(peer->pidfd && process_exited(peer->pidfd.get()));
  });
  return touched;
}

Status ShmLink::remove_memory(MemoryId id) {
  const SteadyClock clock;
  std::int64_t deadline = 0;
  for (;;) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      LocalMemory* const memory = table_.find(id);
      if (memory == nullptr) return {Code::invalid_argument, "stale memory"};
      if (memory->uses.load(std::memory_order_acquire) > 0) {
        return {Code::exhausted, "memory is used by a batch in flight"};
      }
      // Shut first, then look who is inside.
      const MemoryCard card = memory->card;
      peers_.for_each([&](std::uint64_t, std::unique_ptr<Peer>& peer) {
        if (!peer->own.admits(card.index, card.generation)) return;
        peer->own.withdraw(card.index);
        if (peer->state == PeerState::draining) return;
        peer->outgoing.push_back({MessageType::forget, card});
        flush_cards(*peer);
      });
      if (!touched_by_peers(card.index)) {
        table_.remove(id);
        return {};
      }
    }
    if (deadline == 0) deadline = clock.now_ns() + kRevokeNs;
    if (clock.now_ns() > deadline) return {Code::exhausted, "a peer is in the middle of a copy"};
    ::sched_yield();
  }
}

Result<Blob> ShmLink::export_memory(MemoryId id, PeerId peer_id) {
  Peer* const peer = find_peer(peer_id);
  if (peer == nullptr || peer->closed_here) return Status{Code::invalid_argument, "stale peer"};
  const std::lock_guard<std::mutex> lock(mutex_);
  const LocalMemory* const memory = table_.find(id);
  if (memory == nullptr) return Status{Code::invalid_argument, "stale memory"};
  if (!memory->direct) {
    return Status{Code::unsupported, "shm cannot let peers into memory that a CPU cannot touch"};
  }
  const MemoryCard& card = memory->card;
  if (!peer->own.admits(card.index, card.generation)) {
    peer->own.admit(card.index, card.generation);
    if (peer->state != PeerState::draining) {
      peer->outgoing.push_back({MessageType::memory, card});
      flush_cards(*peer);
    }
  }
  const auto* const raw = reinterpret_cast<const std::byte*>(&card);
  return Blob(raw, raw + sizeof(card));
}

// With mutex_ held. Cards of a peer that is not up yet wait.
void ShmLink::flush_cards(Peer& peer) {
  while (peer.state == PeerState::up && !peer.outgoing.empty()) {
    const OutgoingCard& next = peer.outgoing.front();
    int fd = -1;
    bool wanted = true;
    if (next.type == MessageType::memory) {
      const LocalMemory* const memory = table_.live_at(next.card.index);
      wanted = memory != nullptr && memory->card == next.card;  // else removed meanwhile
      if (wanted && memory->fd) fd = memory->fd.get();
    }
    if (wanted) {
      Message message;
      message.type = next.type;
      message.card = next.card;
      const Status sent = send_message(peer.socket.get(), message, fd);
      if (sent.code() == Code::exhausted) {
        cards_waiting_.store(true, std::memory_order_relaxed);
        return;
      }
    }
    peer.outgoing.pop_front();  // a dead socket is noticed by the owner's poll
  }
}

void ShmLink::flush_all_cards() {
  const std::lock_guard<std::mutex> lock(mutex_);
  cards_waiting_.store(false, std::memory_order_relaxed);
  for (Peer* peer : order_) flush_cards(*peer);
}

Result<RemoteId> ShmLink::import_memory(PeerId peer_id, std::span<const std::byte> blob) {
  Peer* const peer = find_peer(peer_id);
  if (peer == nullptr || peer->closed_here) return Status{Code::invalid_argument, "stale peer"};
  Result<MemoryCard> card = decode_card(blob);
  if (!card.ok()) return card.status();
  // The card was sent before the blob: most often it is in the socket by now.
  if (peer->socket && peer->state != PeerState::draining) hear_peer(*peer);
  if (peer->state == PeerState::draining) return Status{Code::peer_lost, "import from a lost peer"};
  const auto [place, fresh] = peer->memories.try_emplace(card_key(*card));
  RemoteMemory& memory = place->second;
  if (fresh) memory.card = *card;
  if (memory.announced) {
    if (memory.gone) return Status{Code::not_found, "the peer has removed this memory"};
    if (memory.card != *card) return Status{Code::invalid_argument, "not the peer's memory card"};
    settle(*peer, memory);
    if (!memory.refused.ok()) return memory.refused;
  }
  auto [id, name] = remotes_.insert();
  *name = RemoteName{};
  name->peer = peer_id;
  name->card = *card;
  name->memory = &memory;
  name->deadline_ns = context_.clock.now_ns() + config_.connect_timeout_ms * 1'000'000;
  ++memory.names;
  if (!memory.announced) ++pending_names_;
  return RemoteId{id};
}

void ShmLink::drop_memory(RemoteId id) {
  RemoteName* const name = remotes_.find(id.value);
  if (name == nullptr || name->dropped) return;
  name->dropped = true;
  if (name->uses == 0) release_name(id.value, *name);
}

void ShmLink::release_name(std::uint64_t id, RemoteName& name) {
  RemoteMemory& memory = *name.memory;
  if (!memory.announced && pending_names_ > 0) --pending_names_;
  if (--memory.names == 0 && (memory.gone || !memory.announced)) {
    if (Peer* peer = find_peer(name.peer)) peer->memories.erase(card_key(memory.card));
  }
  name.memory = nullptr;
  remotes_.erase(id);
}

// A card from the peer's socket. It may claim anything about itself, but only about itself.
void ShmLink::on_card(Peer& peer, const MemoryCard& card, UniqueFd fd) {
  const auto* const raw = reinterpret_cast<const std::byte*>(&card);
  if (!decode_card({raw, sizeof(card)}).ok() ||
      peer.memories.size() >= 2 * std::size_t{kMemoriesMax}) {
    return drain(peer, Code::corrupt);
  }
  RemoteMemory& memory = peer.memories[card_key(card)];
  if (memory.announced) return;  // repeated: the first one counts
  pending_names_ -= std::min(pending_names_, memory.names);
  memory.announced = true;
  memory.card = card;
  if (card.path == MemoryPath::mapped) map_announced(memory, fd.get());
  if (memory.names > 0) settle(peer, memory);
}

void ShmLink::map_announced(RemoteMemory& memory, int fd) {
  const MemoryCard& card = memory.card;
  Result<Mapping> mapping =
      map_sealed(fd, card.offset, card.bytes, allows(card.access, Access::remote_write));
  if (mapping.ok()) {
    memory.mapping = std::move(mapping).value();
  } else {
    memory.refused = mapping.status();
    count(denied_memory_, mapping.code());
    log(LogLevel::info, "shm.memory_refused",
        {{"code", to_string(mapping.code())},
         {"why", mapping.status().to_string()},
         {"hint", "this memory goes by another transport; see the limits of mapped memory"}});
  }
}

void ShmLink::on_forget(Peer& peer, const MemoryCard& card) {
  const auto place = peer.memories.find(card_key(card));
  if (place == peer.memories.end()) return;
  RemoteMemory& memory = place->second;
  memory.gone = true;
  // Unmapped now, so that the peer's pages are free as soon as it frees them.
  if (memory.uses == 0) memory.mapping.reset();
  if (memory.names == 0) peer.memories.erase(place);
}

// Announced memory is imported. Foreign memory needs the kernel's leave, which is asked for once
// for each peer.
void ShmLink::settle(Peer& peer, RemoteMemory& memory) {
  if (memory.mapping && memory.seen.empty()) {
    memory.seen.assign(memory.card.bytes / kSeenBytes + 2, false);
  }
  if (memory.card.path != MemoryPath::foreign) return;
  if (peer.state != PeerState::up) return;
  memory.refused = try_cross_memory(peer);
}

Status ShmLink::try_cross_memory(Peer& peer) {
  if (peer.cross_memory == CrossMemory::allowed) return {};
  if (peer.cross_memory == CrossMemory::denied) return peer.cross_memory_status;
  // Reads the token that the peer's process holds at the address it named: proves leave, and that
  // this is the very process.
  Token seen{};
  iovec here{seen.data(), seen.size()};
  iovec there{reinterpret_cast<void*>(peer.probe_address), seen.size()};
  const char* reason = nullptr;
  int error = 0;
  if (!config_.cross_memory) {
    reason = "switched off by shm.cross_memory";
  } else if (peer.pid <= 0) {
    reason = "the peer runs in a PID namespace that is not visible from here";
  } else if (::process_vm_readv(peer.pid, &here, 1, &there, 1, 0) !=
             static_cast<ssize_t>(seen.size())) {
    error = errno;
    // It has died, which says nothing about leave: its socket or its pidfd tells that.
    if (error == ESRCH) return {Code::peer_lost, "try the memory of the shm peer", error};
    reason = error == EPERM ? "the kernel forbids it" : "the peer's process cannot be read";
  } else if (seen != peer.offer.token) {
    reason = "the peer's process is not the one that made the offer";
  }
  if (reason == nullptr) {
    peer.cross_memory = CrossMemory::allowed;
    return {};
  }
  peer.cross_memory = CrossMemory::denied;
  peer.cross_memory_status =
      Status{Code::unsupported, "cross-memory attach to the shm peer is not possible", error};
  count(denied_memory_, Code::unsupported);
  log(LogLevel::warning, "shm.cross_memory_denied",
      {{"pid", peer.pid},
       {"code", to_string(Code::unsupported)},
       {"why", reason},
       {"error", error == 0 ? "" : std::strerror(error)},
       {"effect", "memory that was not allocated as a SharedBuffer goes by another transport"},
       {"hint",
        "allocate KV pages from SharedBuffer; or set shm.allow_ptrace at the peer, or "
        "kernel.yama.ptrace_scope=0, or run both in one PID namespace with CAP_SYS_PTRACE"}});
  return peer.cross_memory_status;
}

Status ShmLink::usable(const RemoteName& name) {
  const RemoteMemory& memory = *name.memory;
  if (!memory.announced) {
    if (context_.clock.now_ns() < name.deadline_ns) return {Code::exhausted, "card not here yet"};
    return {Code::permission, "the peer never announced this memory"};
  }
  if (memory.gone || memory.card != name.card) {
    return {Code::permission, "memory is not the peer's, or was removed"};
  }
  return memory.refused;
}

}  // namespace kvl::shm
