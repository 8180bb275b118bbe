// Batches of a Link over a fabric, from post() to their event, and what its peers have in common.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "kvl/metrics.h"
#include "kvl/transport.h"
#include "transport/base/batch_cursor.h"
#include "transport/base/labelled_metrics.h"
#include "transport/base/slot_pool.h"
#include "transport/fabric/peer_wire.h"

namespace kvl {

// Where poll() writes its events.
struct EventSink {
  std::span<Event> events;
  std::size_t count = 0;
  std::size_t left() const { return events.size() - count; }
  Event& next(Event::Kind kind, PeerId peer) {
    Event& event = events[count++];
    event = Event{};
    event.kind = kind;
    event.peer = peer;
    return event;
  }
};

// opened -> connecting -> up -> closing -> (peer_down, gone); every state may go to closing.
enum class PeerState : std::uint8_t { opened, connecting, up, closing };

// Says that a peer is up, once there is room.
template <typename Peer>
void announce_up(Peer& peer, EventSink& sink) {
  if (sink.left() == 0) return;
  sink.next(Event::Kind::peer_up, peer.id);
  peer.up_announced = true;
}
// A note of a peer; there is room.
inline void show_note(PeerId peer, const std::array<std::byte, kNoteBytesMax>& note,
                      std::uint8_t note_bytes, EventSink& sink) {
  Event& event = sink.next(Event::Kind::note, peer);
  event.note = note;
  event.note_bytes = note_bytes;
}
// What a hello over the fabric says of its sender.
template <typename Peer>
std::uint64_t hello_flags(const Peer& peer) {
  return (peer.heard ? kHelloHeard : 0) | (peer.state == PeerState::connecting ? 0 : kHelloUp);
}

// A message that is still to be posted.
struct Owed {
  MessageType type = MessageType::nothing;
  std::uint64_t value = 0;
};

// What a fabric's own slot begins with.
struct PostedBatch {
  Batch batch;  // batch.note names `note`
  std::array<std::byte, kNoteBytesMax> note{};
  BatchCursor cursor;
  std::uint64_t bytes_done = 0;
  std::uint32_t next = kNoSlot, previous = kNoSlot;
  Code code = Code::ok;
  bool used = false;
  bool started = false;      // its ReadyToken was seen ready
  bool ending = false;       // no more is posted; `code` is its end
  bool note_posted = false;  // what is left is the device's

  bool all_posted() const { return cursor.done() && (batch.note.empty() || note_posted); }
};

// One Link's; its owner's thread. Slot is a PostedBatch and what is under way of it. Each peer has
// a queue of those that are not finished; what is finished waits here for its event.
template <typename Slot>
class BatchTable {
 public:
  explicit BatchTable(std::uint32_t count) : slots_(count) {}

  bool full() const { return slots_.full(); }
  Slot& operator[](std::uint32_t index) { return slots_[index]; }
  std::uint32_t queued() const { return queued_; }  // in the queues of peers
  bool any_finished() const { return !finished_.empty(); }
  // kNoSlot: no such batch in flight.
  std::uint32_t find(Ticket ticket) {
    for (std::uint32_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].used && slots_[i].batch.ticket == ticket) return i;
    }
    return kNoSlot;
  }

  // Not when full(). The last of `queue`; its slot.
  std::uint32_t take(const Batch& batch, SlotList& queue) {
    const std::uint32_t index = slots_.take();
    Slot& slot = slots_[index];
    slot.batch = batch;
    std::copy(batch.note.begin(), batch.note.end(), slot.note.begin());
    slot.batch.note = std::span<const std::byte>(slot.note).first(batch.note.size());
    slot.cursor.start(batch.ops, batch.begin, batch.end);
    slots_.push(queue, index);
    ++queued_;
    return index;
  }
  // Nothing touches its memory any more: only its event is left.
  void finish(std::uint32_t index, SlotList& queue, Code code) {
    Slot& slot = slots_[index];
    slot.code = code;
    slot.ending = true;
    slots_.erase(queue, index);
    --queued_;
    slots_.push(finished_, index);
  }
  // Writes events while there is room; delivered(peer) for each.
  template <typename F>
  void deliver(EventSink& sink, F delivered) {
    while (!finished_.empty() && sink.left() > 0) {
      const std::uint32_t index = finished_.head;
      Slot& slot = slots_[index];
      slots_.erase(finished_, index);
      Event& event = sink.next(Event::Kind::batch, slot.batch.peer);
      event.code = slot.code;
      event.ticket = slot.batch.ticket;
      event.bytes_done = slot.bytes_done;
      if (slot.code == Code::ok) {
        ok_.add();
      } else {
        failed_.at(static_cast<std::size_t>(slot.code)).add();
      }
      delivered(slot.batch.peer);
      slots_.give(index);
    }
  }

  void visit(LabelledMetrics& metrics, std::string_view ok_name,
             std::string_view failed_name) const {
    metrics.count(ok_name, "Batches that ended ok", ok_);
    metrics.by_code(failed_name, "Batches that ended otherwise, by cause", Code::peer_lost,
                    failed_);
  }

 private:
  SlotPool<Slot> slots_;
  SlotList finished_;
  std::uint32_t queued_ = 0;
  Counter ok_;
  std::array<Counter, static_cast<std::size_t>(Code::internal) + 1> failed_;
};

}  // namespace kvl
