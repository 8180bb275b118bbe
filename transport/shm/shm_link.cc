// Batches: taken, checked, moved in turns, delivered.
#include "transport/shm/shm_link.h"

#include <sched.h>

#include <algorithm>
#include <cstring>

#include "kvl/log.h"
#include "transport/base/labelled_metrics.h"

namespace kvl::shm {
namespace {

constexpr std::uint64_t kWindowBytes = 256 << 10;
constexpr std::uint32_t kPollsPerIo = 32;       // an idle poll looks at the sockets this often
constexpr std::uint64_t kBytesPerIo = 4 << 20;  // … and a busy one

}  // namespace

Peer* ShmLink::find_peer(PeerId id) {
  std::unique_ptr<Peer>* const peer = peers_.find(id.value);
  return peer == nullptr ? nullptr : peer->get();
}

Status ShmLink::check_batch(const Batch& batch) {
  if (batch.note.size() > kNoteBytesMax) return {Code::invalid_argument, "note too long"};
  if (!batch.note.empty() && batch.direction != Direction::write) {
    return {Code::invalid_argument, "a read carries no note"};
  }
  if (batch.ops.empty()) {
    if (batch.begin != 0 || batch.end != 0) return {Code::invalid_argument, "positions of no ops"};
    return {};
  }
  const Access wanted =
      batch.direction == Direction::write ? Access::remote_write : Access::remote_read;
  for (const MemoryId id : batch.locals) {
    if (table_.find(id) == nullptr) return {Code::invalid_argument, "stale local memory"};
  }
  for (const RemoteId id : batch.remotes) {
    const RemoteName* const name = remotes_.find(id.value);
    if (name == nullptr || name->dropped || name->peer != batch.peer) {
      return {Code::invalid_argument, "stale remote memory"};
    }
  }
  return check_ops(
      batch.ops, batch.begin, batch.end, batch.locals.size(), batch.remotes.size(),
      [&](std::uint32_t region) { return table_.at(batch.locals[region]).memory.bytes; },
      [&](std::uint32_t region, std::uint64_t& bytes) -> Status {
        const MemoryCard& card = remotes_.find(batch.remotes[region].value)->card;
        if (!allows(card.access, wanted)) return {Code::permission, "access of remote memory"};
        bytes = card.bytes;
        return {};
      });
}

Status ShmLink::post(const Batch& batch) {
  Peer* const peer = find_peer(batch.peer);
  if (peer == nullptr || peer->closed_here) return {Code::invalid_argument, "stale peer"};
  if (pool_.full()) return {Code::exhausted, "batches in flight"};
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    KVL_TRY(check_batch(batch));
    if (!batch.ops.empty()) {
      for (const MemoryId id : batch.locals) {
        table_.at(id).uses.fetch_add(1, std::memory_order_relaxed);
      }
    }
  }
  if (!batch.ops.empty()) {
    for (const RemoteId id : batch.remotes) {
      RemoteName& name = *remotes_.find(id.value);
      ++name.uses;
      ++name.memory->uses;
    }
  }
  const std::uint32_t index = pool_.take();
  BatchSlot& slot = pool_[index];
  slot.batch = batch;
  std::copy(batch.note.begin(), batch.note.end(), slot.note.begin());
  slot.batch.note = std::span<const std::byte>(slot.note).first(batch.note.size());
  slot.cursor.start(batch.ops, batch.begin, batch.end);
  pool_.push(peer->queue, index);
  ++queued_;
  ++peer->batches_open;
  if (peer->state == PeerState::draining) finish(*peer, index, peer->down_code);
  return {};
}

Status ShmLink::cancel(Ticket ticket) {
  for (std::uint32_t i = 0; i < pool_.size(); ++i) {
    BatchSlot& slot = pool_[i];
    if (!slot.used || slot.batch.ticket != ticket) continue;
    Peer* const peer = find_peer(slot.batch.peer);
    if (peer == nullptr || slot.ending) return {};  // its event is on its way
    slot.ending = true;
    slot.code = Code::aborted;
    if (slot.windows == 0) finish(*peer, i, Code::aborted);
    return {};
  }
  return {Code::not_found, "no such batch in flight"};
}

// Nothing touches the batch's memory any more: only its event is left.
void ShmLink::finish(Peer& peer, std::uint32_t index, Code code) {
  BatchSlot& slot = pool_[index];
  slot.code = code;
  slot.ending = true;
  pool_.erase(peer.queue, index);
  --queued_;
  pool_.push(done_, index);
  if (slot.batch.ops.empty()) return;
  for (const RemoteId id : slot.batch.remotes) {
    RemoteName& name = *remotes_.find(id.value);
    --name.uses;
    RemoteMemory& memory = *name.memory;
    if (--memory.uses == 0 && memory.gone) memory.mapping.reset();
    if (name.dropped && name.uses == 0) release_name(id.value, name);
  }
  for (const MemoryId id : slot.batch.locals) {
    table_.at(id).uses.fetch_sub(1, std::memory_order_release);
  }
}

void ShmLink::end_batches(Peer& peer, Code code) {
  for (std::uint32_t i = peer.queue.head; i != kNoBatch;) {
    const std::uint32_t next = pool_[i].next;
    BatchSlot& slot = pool_[i];
    if (!slot.ending) slot.code = code;
    slot.ending = true;
    if (slot.windows == 0) finish(peer, i, slot.code);
    i = next;
  }
}

bool ShmLink::runnable(Peer& peer, BatchSlot& slot) {
  if (peer.state != PeerState::up || slot.ending) return false;
  slot.started = slot.started || slot.batch.after.ready();
  if (!slot.started) return false;
  if (slot.cursor.done()) return slot.windows == 0 && !peer.blocked;
  const RemoteName* const name =
      remotes_.find(slot.batch.remotes[slot.cursor.op().remote_region].value);
  return usable(*name).code() != Code::exhausted;
}

void ShmLink::step_batch(Peer& peer, std::uint32_t index, std::uint64_t& budget) {
  BatchSlot& slot = pool_[index];
  while (!slot.ending && !slot.cursor.done() && budget > 0) {
    std::uint64_t moved = 0;
    const Moved result = move_window(peer, index, std::min(budget, kWindowBytes), moved);
    budget -= std::min(budget, moved);
    if (result == Moved::later) return;
    if (result == Moved::failed) slot.ending = true;  // its code is set
  }
  if (slot.windows > 0) return;
  if (slot.ending) return finish(peer, index, slot.code);
  if (!slot.cursor.done()) return;
  if (!slot.batch.note.empty() && !send_note(peer, slot)) return;
  finish(peer, index, Code::ok);
}

void ShmLink::run_peer(Peer& peer, std::uint64_t budget) {
  for (std::uint32_t i = peer.queue.head; i != kNoBatch && budget > 0;) {
    const std::uint32_t next = pool_[i].next;
    BatchSlot& slot = pool_[i];
    slot.started = slot.started || slot.batch.after.ready();
    if (slot.started) step_batch(peer, i, budget);
    if (peer.doom != Code::ok) return drain(peer, peer.doom);
    i = next;
  }
}

void ShmLink::deliver_batches(Sink& sink) {
  while (!done_.empty() && !sink.full()) {
    const std::uint32_t i = done_.head;
    BatchSlot& slot = pool_[i];
    pool_.erase(done_, i);
    Event& event = sink.next();
    event.kind = Event::Kind::batch;
    event.code = slot.code;
    event.peer = slot.batch.peer;
    event.ticket = slot.batch.ticket;
    event.bytes_done = slot.bytes_done;
    if (slot.code == Code::ok) {
      batches_ok_.add();
    } else {
      count(batches_failed_, slot.code);
    }
    if (Peer* peer = find_peer(slot.batch.peer)) --peer->batches_open;
    pool_.give(i);
  }
}

std::size_t ShmLink::poll(std::span<Event> events) {
  Sink sink{events};
  const bool slept = armed_;
  if (armed_) disarm();
  if (slept || unsettled_ > 0 || ++polls_since_io_ >= kPollsPerIo ||
      bytes_since_io_ >= kBytesPerIo) {
    run_io();
  }
  if (unsettled_ > 0) run_timers();
  if (cards_waiting_.load(std::memory_order_relaxed)) flush_all_cards();
  if (windows_used_ > 0) poll_windows();

  // Each peer in its turn; the next poll begins with the next peer.
  const std::size_t peers = order_.size();
  const auto budget = static_cast<std::uint64_t>(config_.poll_bytes);
  const std::uint64_t moved_before = bytes_since_io_;
  for (std::size_t i = 0; i < peers; ++i) {
    Peer& peer = *order_[(turn_ + i) % peers];
    if (peer.state == PeerState::up && !peer.up_announced) {
      if (sink.full()) continue;
      Event& event = sink.next();
      event.kind = Event::Kind::peer_up;
      event.peer = peer.id;
      peer.up_announced = true;
    }
    if (peer.up_announced) take_notes(peer, sink);
    if (peer.state == PeerState::up && !peer.queue.empty()) {
      const std::uint64_t moved = bytes_since_io_ - moved_before;
      if (moved < budget) {
        const std::uint64_t sharers =
            std::max<std::uint64_t>(1, std::min<std::uint64_t>(peers - i, queued_));
        run_peer(peer, std::max(kWindowBytes, (budget - moved) / sharers));
      }
    }
  }
  if (peers > 0) turn_ = (turn_ + 1) % peers;
  deliver_batches(sink);
  if (unsettled_ > 0) {
    for (std::size_t i = order_.size(); i-- > 0;) {
      if (order_[i]->state == PeerState::draining) step_draining(*order_[i], sink);
    }
  }
  return sink.count;
}

void ShmLink::visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const {
  LabelledMetrics metrics(visitor, labels);
  metrics.count("kvlane_shm_written_bytes_total", "Bytes copied to peers", bytes_written_);
  metrics.count("kvlane_shm_read_bytes_total", "Bytes copied from peers", bytes_read_);
  metrics.count("kvlane_shm_batches_ok_total", "Batches that ended ok", batches_ok_);
  metrics.by_code("kvlane_shm_batches_failed_total", "Batches that ended otherwise, by cause",
                  Code::unavailable, batches_failed_);
  metrics.count("kvlane_shm_notes_sent_total", "Notes written", notes_sent_);
  metrics.count("kvlane_shm_notes_received_total", "Notes taken", notes_received_);
  metrics.count("kvlane_shm_doorbells_total", "Sleeping peers that were woken", doorbells_);
  metrics.by_code("kvlane_shm_refused_memory_total",
                  "Memory of peers that could not be used, by cause", Code::unsupported,
                  denied_memory_);
  metrics.by_code("kvlane_shm_unfenced_peers_total",
                  "Peers that were given up while they might still write here, by cause",
                  Code::timed_out, peers_unfenced_);
  refusals_.visit(visitor, labels);
}

}  // namespace kvl::shm
