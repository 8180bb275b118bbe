// Notes of small batches. A note that waits for its writes to be complete comes three one-way trips
// after the first of them. Where a batch has few writes, each carries an immediate instead, the
// note is sent beside them, and the target shows it when it has counted as many immediates as the
// note says: one trip, at the price of a completion for each write at the target. An immediate says
// that its own write is in place and nothing of any other, so that they are counted, and their
// order means nothing.
//
// Nothing protects a completion queue of an EFA from overrun. So a target gives each of its peers,
// while its queue has room, a channel of kCountSlots slots; a batch takes one, with up to kCountMax
// immediates, until the target has shown its note and says that the slot is free. Who has no
// channel or no free slot sends its note the other way.
#include <algorithm>
#include <bit>

#include "transport/base/crypto.h"
#include "transport/libfabric/fabric_link.h"

namespace kvl::libfabric {

// --- the target

void FabricLink::grant(Peer& peer) {
  if (peer.own_channel != kNoChannel || immediates_left_ < kImmediatesOfPeer) return;
  std::uint32_t channel = kNoChannel;
  while (channel == kNoChannel || channels_.contains(channel)) {
    crypto::random(std::as_writable_bytes(std::span(&channel, 1)));
    channel &= (1U << kChannelBits) - 1;
  }
  immediates_left_ -= kImmediatesOfPeer;
  channels_[channel] = &peer;
  peer.own_channel = channel;
  peer.slots.resize(kCountSlots);
  counted_notes_.reserve(channels_.size() * kCountSlots);
}

// The peer is shut out: nothing of it comes any more.
void FabricLink::take_back_grant(Peer& peer) {
  if (peer.own_channel == kNoChannel) return;
  channels_.erase(peer.own_channel);
  immediates_left_ += kImmediatesOfPeer;
}

bool FabricLink::owes_counts(const Peer& peer) {
  // Half of them, so that it does not run out, and not one by one.
  return peer.own_channel != kNoChannel &&
         (!peer.said_grant ||
          static_cast<std::uint32_t>(std::popcount(peer.freed)) >= kCountSlots / 2);
}

void FabricLink::say_counts(Peer& peer) {
  if (!owes_counts(peer)) return;
  if (!peer.said_grant) {
    peer.said_grant = post_message(peer, MessageType::grant, peer.own_channel) == Posted::yes;
    return;
  }
  if (post_message(peer, MessageType::freed, peer.freed) == Posted::yes) peer.freed = 0;
}

void FabricLink::count_immediate(std::uint64_t data) {
  const auto channel = channels_.find(static_cast<std::uint32_t>(data >> kSlotBits));
  const auto slot = static_cast<std::uint32_t>(data & ((1U << kSlotBits) - 1));
  if (channel == channels_.end() || slot >= kCountSlots) {
    strangers_[static_cast<std::size_t>(Stranger::unknown_token)].add();
    return;
  }
  Peer& peer = *channel->second;
  peer.active = true;
  immediates_.add();
  ++peer.slots[slot].arrived;
  note_counted(peer, slot);
}

// Something was learned of a slot: it may be complete now.
void FabricLink::note_counted(Peer& peer, std::uint32_t slot) {
  Counted& counted = peer.slots[slot];
  if (!counted.complete()) return;
  if (counted.note_bytes > 0) {
    if (counted.arrived == counted.due) counted_notes_.push_back({peer.id.value, slot});
    return;  // more than were due: from who has no right to them
  }
  counted = {};
  peer.freed |= 1U << slot;
  if (owes_counts(peer)) rounds_.all();
}

// A note that says for which immediates it waits. Hostile.
bool FabricLink::take_counted_note(Peer& peer, const PeerMessage& message) {
  const std::uint64_t slot = message.value & ((1U << kSlotBits) - 1);
  const std::uint64_t due = message.value >> kSlotBits;
  if (slot >= peer.slots.size() || due == 0 || due > kCountMax || peer.slots[slot].said) {
    strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
    return true;
  }
  ++peer.messages_taken;
  Counted& counted = peer.slots[slot];
  counted.note = message.note;
  counted.note_bytes = message.note_bytes;
  counted.said = true;
  counted.due = static_cast<std::uint32_t>(due);
  counted.arrived = std::min(counted.arrived, counted.due);
  note_counted(peer, static_cast<std::uint32_t>(slot));
  return true;
}

void FabricLink::show_counted(EventSink& sink) {
  std::size_t shown = 0;
  for (; shown < counted_notes_.size() && sink.left() > 0; ++shown) {
    const CountedNote& next = counted_notes_[shown];
    Peer* const peer = find_peer({next.peer});
    if (peer == nullptr) continue;
    Counted& counted = peer->slots[next.slot];
    show_note(peer->id, counted.note, counted.note_bytes, sink);
    notes_received_.add();
    notes_counted_.add();
    counted = {};
    peer->freed |= 1U << next.slot;
    if (owes_counts(*peer)) rounds_.all();
  }
  counted_notes_.erase(counted_notes_.begin(),
                       counted_notes_.begin() + static_cast<std::ptrdiff_t>(shown));
}

// A note is here, and its immediates are not, or nobody has seen it yet.
bool FabricLink::still_counts(const Peer& peer) const {
  return std::any_of(peer.slots.begin(), peer.slots.end(),
                     [](const Counted& counted) { return counted.note_bytes > 0; });
}

// --- the sender

void FabricLink::hear_counts(Peer& peer, const PeerMessage& message) {
  const std::uint64_t slot = message.value & ((1U << kSlotBits) - 1);
  const std::uint64_t due = message.value >> kSlotBits;
  if (message.type == MessageType::grant && peer.channel == kNoChannel &&
      endpoint_->immediates_max() > 0 && message.value < (1U << kChannelBits)) {
    peer.channel = static_cast<std::uint32_t>(message.value);
    peer.free_slots = kAllSlots;
  } else if (message.type == MessageType::freed && peer.channel != kNoChannel) {
    peer.free_slots |= static_cast<std::uint32_t>(message.value) & kAllSlots;
  } else if (message.type == MessageType::uncount && slot < peer.slots.size() && due <= kCountMax) {
    Counted& counted = peer.slots[slot];
    if (counted.complete()) return;  // its note is about to be shown: a sender that lies
    counted.note_bytes = 0;
    counted.said = true;
    counted.due = static_cast<std::uint32_t>(due);
    note_counted(peer, static_cast<std::uint32_t>(slot));
  }
}

// By how many operations the batch is: its neighbours are merged, and what is too long is cut.
void FabricLink::choose_counting(Peer& peer, BatchSlot& slot) {
  slot.looked_at = true;
  const bool could = !slot.batch.note.empty() && !slot.cursor.done() && config_.counted_ops > 0;
  if (!could || peer.free_slots == 0) return;
  BatchCursor cursor = slot.cursor;
  std::int64_t operations = 0;
  while (!cursor.done() && operations <= config_.counted_ops) {
    take_stretch(slot, cursor);
    ++operations;
  }
  if (operations > config_.counted_ops) return;
  slot.count_slot = static_cast<std::uint32_t>(std::countr_zero(peer.free_slots));
  peer.free_slots &= peer.free_slots - 1;
}

// The target frees the slot when it has shown the note. Where none comes it must be told.
void FabricLink::end_counting(Peer& peer, BatchSlot& slot, Code code) {
  if (code == Code::ok || peer.state == PeerState::closing) return;
  if (slot.counted_ok == 0 && !slot.note_posted) {
    peer.free_slots |= 1U << slot.count_slot;  // it has heard of nothing
  } else {
    const std::uint64_t due = slot.counted_ok;
    peer.owed.push_back({MessageType::uncount, (due << kSlotBits) | slot.count_slot});
    rounds_.all();
  }
}

}  // namespace kvl::libfabric
