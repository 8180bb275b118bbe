// Notes, the doorbell, and how the owner of a Link goes to sleep.
#include <algorithm>
#include <cstring>

#include "transport/shm/shm_link.h"

namespace kvl::shm {
namespace {

constexpr std::int64_t kWatchNs = 200'000;  // for what nobody wakes us for

}  // namespace

// False: there is no room, or the peer was found to be lost.
bool ShmLink::send_note(Peer& peer, const BatchSlot& slot) {
  OutboxLayout& own = peer.own.page();
  std::uint64_t used = peer.note_head - peer.view.page().note_tail.load(std::memory_order_acquire);
  if (used == kNoteSlots) {
    if (!peer.blocked) own.blocked.store(1, std::memory_order_seq_cst);
    peer.blocked = true;
    used = peer.note_head - peer.view.page().note_tail.load(std::memory_order_seq_cst);
    if (used == kNoteSlots) return false;
  }
  if (used > kNoteSlots) {
    peer.doom = Code::corrupt;
    return false;
  }
  if (peer.blocked) own.blocked.store(0, std::memory_order_relaxed);
  peer.blocked = false;
  NoteSlot& note = own.notes[peer.note_head % kNoteSlots];
  note.bytes = static_cast<std::uint8_t>(slot.batch.note.size());
  std::memcpy(note.data.data(), slot.note.data(), slot.batch.note.size());
  // Publishes the note and, before it, every byte of the batch; then looks for a sleeper.
  own.note_head.store(++peer.note_head, std::memory_order_seq_cst);
  notes_sent_.add();
  ring(peer);
  return true;
}

void ShmLink::ring(Peer& peer) {
  const std::uint32_t armed = peer.view.page().armed.load(std::memory_order_seq_cst);
  if ((armed & 1U) == 0 || armed == peer.rung) return;
  peer.rung = armed;
  doorbells_.add();
  // A full socket is readable at the other end: as good as a bell. A dead one is found by run_io.
  (void)send_message(peer.socket.get(), Message{.type = MessageType::doorbell});
}

void ShmLink::take_notes(Peer& peer, Sink& sink) {
  if (!peer.view || !peer.notes_open) return;
  const OutboxLayout& theirs = peer.view.page();
  const std::uint64_t waiting = theirs.note_head.load(std::memory_order_acquire) - peer.note_tail;
  if (waiting == 0) return;
  if (waiting > kNoteSlots) {
    peer.notes_open = false;
    return drain(peer, Code::corrupt);
  }
  const std::uint64_t end = peer.note_tail + waiting;
  while (peer.note_tail != end && !sink.full()) {
    const NoteSlot& slot = theirs.notes[peer.note_tail % kNoteSlots];
    const std::uint8_t bytes = *static_cast<const volatile std::uint8_t*>(&slot.bytes);
    if (bytes > kNoteBytesMax) {
      peer.notes_open = false;
      return drain(peer, Code::corrupt);
    }
    Event& event = sink.next();
    event.kind = Event::Kind::note;
    event.peer = peer.id;
    event.note_bytes = bytes;
    std::memcpy(event.note.data(), slot.data.data(), bytes);
    ++peer.note_tail;
    notes_received_.add();
  }
  peer.own.page().note_tail.store(peer.note_tail, std::memory_order_seq_cst);
  if (theirs.blocked.load(std::memory_order_seq_cst) != 0 && peer.socket) ring(peer);
}

void ShmLink::disarm() {
  armed_ = false;
  for (Peer* peer : order_) {
    std::atomic<std::uint32_t>& word = peer->own.page().armed;
    const std::uint32_t value = word.load(std::memory_order_relaxed);
    if ((value & 1U) != 0) word.store(value + 1, std::memory_order_relaxed);
  }
}

bool ShmLink::arm() {
  if (!done_.empty() || windows_used_ > 0) return false;
  armed_ = true;
  for (Peer* peer : order_) {
    if (peer->state != PeerState::up) continue;
    std::atomic<std::uint32_t>& word = peer->own.page().armed;
    word.store(word.load(std::memory_order_relaxed) | 1U, std::memory_order_seq_cst);
  }
  for (Peer* peer : order_) {
    bool pending = peer->drained || (peer->state == PeerState::up && !peer->up_announced);
    if (peer->state == PeerState::up) {
      const OutboxLayout& theirs = peer->view.page();
      pending = pending || theirs.note_head.load(std::memory_order_seq_cst) != peer->note_tail;
      if (peer->blocked &&
          peer->note_head - theirs.note_tail.load(std::memory_order_seq_cst) != kNoteSlots) {
        pending = true;
      }
      for (std::uint32_t b = peer->queue.head; b != kNoBatch && !pending; b = pool_[b].next) {
        pending = runnable(*peer, pool_[b]);
      }
    }
    if (pending) {
      disarm();
      return false;
    }
  }
  return true;
}

std::int64_t ShmLink::next_timer_ns() const {
  std::int64_t next = INT64_MAX;
  bool watch = pending_names_ > 0 || cards_waiting_.load(std::memory_order_relaxed);
  if (unsettled_ > 0) {
    for (const Stranger& stranger : strangers_) next = std::min(next, stranger.deadline_ns);
    for (const Peer* peer : order_) {
      next = std::min(next, peer->deadline_ns);
      watch =
          watch || peer->state == PeerState::draining ||
          (peer->state == PeerState::connecting && peer->role == PeerRole::active && !peer->socket);
    }
  }
  // A ReadyToken is a word in memory that wakes nobody.
  watch = watch || queued_ > 0;
  return watch ? std::min(next, context_.clock.now_ns() + kWatchNs) : next;
}

}  // namespace kvl::shm
