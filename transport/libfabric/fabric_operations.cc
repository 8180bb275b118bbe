// What is posted to the provider, and what has completed.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kvl/log.h"
#include "transport/libfabric/fabric_link.h"

namespace kvl::libfabric {
namespace {

constexpr std::uint32_t kDoorbellRun = 16;  // operations behind one doorbell at most
constexpr int kReadsPerPoll = 8;
constexpr std::size_t kEntries = 16;
constexpr std::int64_t kGreetAgainNs = 5'000'000;

}  // namespace

// True: the batch can go on in a later poll only.
bool FabricLink::run_batch(Peer& peer, std::uint32_t index, std::uint32_t& budget) {
  BatchSlot& slot = batches_[index];
  if (!slot.looked_at) choose_counting(peer, slot);
  for (std::uint32_t run = 0; !slot.ending && !slot.cursor.done() && budget > 0; ++run) {
    // Providers on sockets move all that they have in one call of ours: that must stay little.
    if (full()) return true;
    // Only while the next one is sure to follow: who says more and stops leaves a doorbell unrung.
    const bool more = run % kDoorbellRun != kDoorbellRun - 1 && budget > 1;
    const Posted posted = post_next(peer, index, more);
    if (posted == Posted::again) return true;
    if (posted == Posted::failed) break;
    --budget;
  }
  // A note waits until every write is complete, but for one whose writes the target counts.
  const bool waits = slot.operations > 0 && slot.count_slot == kNoSlot;
  if (slot.ending || !slot.cursor.done() || waits) return false;
  if (slot.batch.note.empty()) {
    finish(peer, index, Code::ok);
    return false;
  }
  if (slot.note_posted || budget == 0) return false;
  const Posted posted = post_note(peer, index);
  if (posted == Posted::yes) --budget;
  return posted == Posted::again;
}

FabricLink::Posted FabricLink::post_note(Peer& peer, std::uint32_t index) {
  BatchSlot& slot = batches_[index];
  const std::uint64_t counts =
      slot.count_slot == kNoSlot
          ? 0
          : (static_cast<std::uint64_t>(slot.counted) << kSlotBits) | slot.count_slot;
  const Posted posted = post_message(peer, MessageType::note, counts, slot.batch.note, index);
  slot.note_posted = posted == Posted::yes;
  return posted;
}

void FabricLink::run_batches(Peer& peer, std::uint32_t& budget) {
  for (std::uint32_t i = peer.queue.head; i != kNoSlot && budget > 0;) {
    const std::uint32_t next = batches_[i].next;
    BatchSlot& slot = batches_[i];
    slot.started = slot.started || slot.batch.after.ready();
    if (slot.started && run_batch(peer, i, budget)) return;
    if (peer.state != PeerState::up) return;
    i = next;
  }
}

FabricLink::Stretch FabricLink::take_stretch(BatchSlot& slot, BatchCursor& cursor) {
  Stretch next;
  next.local_region = cursor.op().local_region;
  next.remote_region = cursor.op().remote_region;
  next.here = cursor.local();
  next.there = cursor.remote();
  if (slot.local_region != next.local_region) {
    slot.local_region = next.local_region;
    slot.local = memory_.find(slot.batch.locals[next.local_region]);
  }
  const RemoteMemory& remote = *remotes_.find(slot.batch.remotes[next.remote_region]);
  // One registration on both sides.
  const std::uint64_t most = std::min(
      {op_bytes_max_, slot.local->stretch_at(next.here), remote.name.stretch_at(next.there)});
  do {
    const std::uint64_t n = std::min(cursor.stretch(), most - next.bytes);
    cursor.take(n);
    next.bytes += n;
  } while (next.bytes < most && !cursor.done() && cursor.op().local_region == next.local_region &&
           cursor.op().remote_region == next.remote_region &&
           cursor.local() == next.here + next.bytes && cursor.remote() == next.there + next.bytes);
  return next;
}

FabricLink::Posted FabricLink::post_next(Peer& peer, std::uint32_t index, bool more) {
  BatchSlot& slot = batches_[index];
  BatchCursor cursor = slot.cursor;
  const Stretch next = take_stretch(slot, cursor);
  const std::uint64_t bytes = next.bytes;
  const LocalMemory& local = *slot.local;
  RemoteMemory& remote = *remotes_.find(slot.batch.remotes[next.remote_region]);
  if (remote.gone || !remotes_.verify(remote, peer.owner())) {
    fail_batch(peer, slot, Code::permission);
    if (slot.operations == 0) finish(peer, index, slot.code);
    return Posted::failed;
  }
  const std::uint32_t number = operations_.take();
  Operation& operation = operations_[number];
  const bool write = slot.batch.direction == Direction::write;
  operation.kind = write ? Operation::Kind::write : Operation::Kind::read;
  operation.peer = peer.id.value;
  operation.moves = peer.moves;
  operation.batch = index;
  operation.bytes = bytes;
  iovec range{local.memory.data + next.here, bytes};
  void* desc = local.desc_at(next.here);
  fi_rma_iov target{remote.name.address_at(next.there), bytes, remote.name.key_at(next.there)};
  fi_msg_rma message{};
  message.msg_iov = &range;
  message.desc = &desc;
  message.iov_count = 1;
  message.addr = peer.address;
  message.rma_iov = &target;
  message.rma_iov_count = 1;
  message.context = &operation.context;
  std::uint64_t flags = FI_COMPLETION;
  if (write) flags |= delivery_complete_ ? FI_DELIVERY_COMPLETE : FI_TRANSMIT_COMPLETE;
  if (slot.count_slot != kNoSlot) {
    flags |= FI_REMOTE_CQ_DATA;
    message.data = (std::uint64_t{peer.channel} << kSlotBits) | slot.count_slot;
  }
  under_way_bytes_ += bytes;
  more = more && !cursor.done() && !full();
  const auto call = write ? ::fi_writemsg : ::fi_readmsg;
  ssize_t result = call(endpoint_->ep(), &message, flags | (more ? FI_MORE : 0));
  if (result == -FI_EAGAIN && more) {
    // What was posted before may wait for a doorbell to make room: ring it with this one.
    more = false;
    result = call(endpoint_->ep(), &message, flags);
  }
  const Posted posted = outcome(result, peer, number, more);
  if (posted == Posted::yes) {
    slot.cursor = cursor;
    ++slot.counted;
  }
  return posted;
}

// What became of a post. Whatever it is, the operation is either under way or free again.
FabricLink::Posted FabricLink::outcome(ssize_t result, Peer& peer, std::uint32_t number,
                                       bool more) {
  Operation& operation = operations_[number];
  if (result == 0) {
    posted_.add();
    ++under_way_;
    ++peer.operations;
    if (operation.batch != kNoSlot) ++batches_[operation.batch].operations;
    doorbell_for_ = more ? peer.id.value : 0;
    return Posted::yes;
  }
  const std::uint32_t batch = operation.batch;
  under_way_bytes_ -= operation.bytes;
  operations_.give(number);
  if (result == -FI_EAGAIN) {
    again_.add();
    stalled_ = true;
    return Posted::again;
  }
  const Fault fault = classify(false, static_cast<int>(-result), 0);
  faults_[static_cast<std::size_t>(fault)].add();
  if (batch != kNoSlot && !about(fault).peer_lost) {
    fail_batch(peer, batches_[batch], about(fault).code);
    if (batches_[batch].operations == 0) finish(peer, batch, batches_[batch].code);
  } else {
    lose(peer, fault, static_cast<int>(-result), 0);
  }
  return Posted::failed;
}

FabricLink::Posted FabricLink::post_message(Peer& peer, MessageType type, std::uint64_t value,
                                            std::span<const std::byte> note, std::uint32_t batch) {
  if (operations_.full()) return Posted::again;
  const std::uint32_t number = operations_.take();
  Operation& operation = operations_[number];
  operation.kind = type == MessageType::note ? Operation::Kind::note : Operation::Kind::message;
  operation.peer = peer.id.value;
  operation.moves = peer.moves;
  operation.batch = batch;
  PeerMessage& message = messages_[number];
  message = message_to(peer.remote, type, value, note);
  iovec range{&message, sizeof(message)};
  void* desc = messages_desc_;
  fi_msg request{};
  request.msg_iov = &range;
  request.desc = &desc;
  request.iov_count = 1;
  request.addr = peer.address;
  request.context = &operation.context;
  const Posted posted =
      outcome(::fi_sendmsg(endpoint_->ep(), &request, FI_COMPLETION), peer, number, false);
  const bool matters = type != MessageType::hello && type != MessageType::nothing;
  if (posted == Posted::yes && matters) ++peer.messages_sent;
  return posted;
}

// A run that ended with "more will follow", and then nothing could: anything closes it.
void FabricLink::ring_doorbell() {
  Peer* const peer = find_peer({doorbell_for_});
  if (peer == nullptr || peer->state == PeerState::closing) {
    for (Peer* const other : rounds_.peers()) {
      if (other->state == PeerState::up &&
          post_message(*other, MessageType::nothing, 0) == Posted::yes) {
        doorbells_.add();
        return;
      }
    }
    if (peer == nullptr) doorbell_for_ = 0;
    if (peer == nullptr || peer->address == FI_ADDR_UNSPEC) return;
  }
  if (post_message(*peer, MessageType::nothing, 0) == Posted::yes) doorbells_.add();
}

void FabricLink::drain_completions() {
  drained_ = false;
  std::array<fi_cq_data_entry, kEntries> entries;
  for (int i = 0; i < kReadsPerPoll; ++i) {
    const ssize_t count = ::fi_cq_read(endpoint_->cq(), entries.data(), entries.size());
    if (count == -FI_EAVAIL) {
      CqError error;
      if (::fi_cq_readerr(endpoint_->cq(), &error.entry, 0) != 1) return;
      if (error.entry.op_context != nullptr) {
        complete(*static_cast<Operation*>(error.entry.op_context), &error.entry);
      }
      continue;
    }
    drained_ = count == -FI_EAGAIN;
    if (count <= 0) return;
    for (std::size_t k = 0; k < static_cast<std::size_t>(count); ++k) take_entry(entries.at(k));
  }
}

void FabricLink::take_entry(const fi_cq_data_entry& entry) {
  Operation* const operation = static_cast<Operation*>(entry.op_context);
  const bool receive = operation != nullptr && operation->kind == Operation::Kind::receive;
  if ((entry.flags & FI_REMOTE_CQ_DATA) != 0 && (operation == nullptr || receive)) {
    count_immediate(entry.data);
    if (!receive) return;  // … else it has used one up
    operation->used = false;
    to_post_.push_back(operation->batch);
    return;
  }
  if (operation == nullptr) return;
  if (receive) operation->bytes = entry.len;
  complete(*operation, nullptr);
}

void FabricLink::complete(Operation& operation, const fi_cq_err_entry* error) {
  if (operation.kind == Operation::Kind::receive) {
    operation.used = false;
    if (error != nullptr) {
      to_post_.push_back(operation.batch);
      return;
    }
    arrived_[(arrived_first_ + arrived_count_++) % arrived_.size()] = operation.batch;
    return;
  }
  const Operation done = operation;
  operations_.give(static_cast<std::uint32_t>(&operation - &operations_[0]));
  --under_way_;
  under_way_bytes_ -= done.bytes;
  Peer* const peer = find_peer({done.peer});
  if (peer == nullptr) return;
  --peer->operations;
  Fault fault = Fault::other;
  if (error != nullptr) {
    fault = classify(efa_, error->err, error->prov_errno);
    faults_[static_cast<std::size_t>(fault)].add();
  }
  if (done.batch != kNoSlot) {
    BatchSlot& slot = batches_[done.batch];
    --slot.operations;
    if (error != nullptr) {
      fail_batch(*peer, slot, about(fault).code);
    } else if (done.kind == Operation::Kind::note) {
      notes_sent_.add();
    } else {
      slot.bytes_done += done.bytes;
      ++slot.counted_ok;
      peer->active = true;
      (done.kind == Operation::Kind::write ? written_bytes_ : read_bytes_).add(done.bytes);
    }
    if (slot.operations == 0 && (slot.ending || slot.all_posted())) {
      finish(*peer, done.batch, slot.ending ? slot.code : Code::ok);
    }
  }
  const bool early = fault == Fault::unknown_peer || peer->moves > 0;
  if (error != nullptr && early && peer->state == PeerState::connecting) {
    // Its device turns us away until its Link has taken our offer, or is about to be another one:
    // said again until the deadline.
    peer->hello_ns = context_.clock.now_ns() + kGreetAgainNs;
  } else if (error != nullptr && about(fault).peer_lost && done.moves == peer->moves) {
    lose(*peer, fault, error->err, error->prov_errno);
  }
}

// No more of it is posted; its first failure is its code. But a loss counts more than a cancel: who
// has lost the peer does not know what still lands there.
void FabricLink::fail_batch(Peer& peer, BatchSlot& slot, Code code) {
  if (slot.ending && !(code == Code::peer_lost && slot.code == Code::aborted)) return;
  slot.ending = true;
  slot.code = peer.state == PeerState::closing ? peer.down_code : code;
}

void FabricLink::post_receives() {
  while (!to_post_.empty() && endpoint_->ep() != nullptr) {
    const std::uint32_t i = to_post_.back();
    PeerMessage& message = messages_[endpoint_->tx_depth() + i];
    const ssize_t result = ::fi_recv(endpoint_->ep(), &message, sizeof(message), messages_desc_,
                                     FI_ADDR_UNSPEC, &receives_[i].context);
    if (result != 0) return;
    receives_[i].used = true;
    to_post_.pop_back();
  }
}

void FabricLink::take_messages(EventSink& sink) {
  while (arrived_count_ > 0) {
    const std::uint32_t i = arrived_[arrived_first_];
    const auto* const bytes =
        reinterpret_cast<const std::byte*>(&messages_[endpoint_->tx_depth() + i]);
    PeerMessage message;
    if (!decode({bytes, std::min<std::size_t>(receives_[i].bytes, sizeof(message))}, message)) {
      strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
    } else if (!take_message(message, sink)) {
      drained_ = false;  // no room for its event
      return;
    }
    arrived_first_ = (arrived_first_ + 1) % arrived_.size();
    --arrived_count_;
    to_post_.push_back(i);
  }
}

}  // namespace kvl::libfabric
