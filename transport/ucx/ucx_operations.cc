// What is posted to UCX, and what has completed.
#include <algorithm>

#include "transport/ucx/ucx_link.h"

namespace kvl::ucx {
namespace {

constexpr int kProgressPerPoll = 8;

}  // namespace

// True: the batch can go on in a later poll only.
bool UcxLink::run_batch(Peer& peer, std::uint32_t index, std::uint32_t& budget) {
  BatchSlot& slot = batches_[index];
  while (!slot.ending && !slot.cursor.done() && budget > 0) {
    if (full(peer, slot)) return true;
    const Posted posted = post_next(peer, index);
    if (posted == Posted::again) return true;
    if (posted == Posted::failed) return false;
    --budget;
  }
  if (budget == 0) return false;
  --budget;
  return conclude(peer, index) == Posted::again;
}

// What follows the last put or get of a batch, whether or not it has failed: a flush, the note, the
// end.
UcxLink::Posted UcxLink::conclude(Peer& peer, std::uint32_t index) {
  BatchSlot& slot = batches_[index];
  if (slot.finished) return Posted::yes;
  if (slot.wants_flush()) {
    const Posted posted = post_flush(peer, index);
    if (posted != Posted::yes) return posted;
  }
  if (slot.finished || !slot.quiet()) return Posted::yes;
  if (slot.ending || slot.batch.note.empty() || slot.note_posted) {
    finish(peer, index, slot.ending ? slot.code : Code::ok);
    return Posted::yes;
  }
  // Seen as posted before it is: a note that is out at once ends its batch there.
  slot.note_posted = true;
  const Posted posted = post_message(peer, MessageType::note, 0, slot.batch.note, index);
  if (posted == Posted::again) slot.note_posted = false;
  return posted;
}

void UcxLink::run_batches(Peer& peer, std::uint32_t& budget) {
  for (std::uint32_t i = peer.queue.head; i != kNoSlot && budget > 0;) {
    const std::uint32_t next = batches_[i].next;
    BatchSlot& slot = batches_[i];
    slot.started = slot.started || slot.ending || slot.batch.after.ready();
    if (slot.started && run_batch(peer, i, budget)) return;
    if (peer.state != PeerState::up) return;
    i = next;
  }
}

// The next stretch of a batch: pieces that lie side by side on both sides are one operation.
UcxLink::Posted UcxLink::post_next(Peer& peer, std::uint32_t index) {
  BatchSlot& slot = batches_[index];
  BatchCursor cursor = slot.cursor;
  const std::uint32_t local_region = cursor.op().local_region;
  const std::uint32_t remote_region = cursor.op().remote_region;
  const LocalMemory& local = *memory_.find(slot.batch.locals[local_region]);
  RemoteKey& remote = *remotes_.find(slot.batch.remotes[remote_region]);
  if (remote.gone || !remotes_.verify(remote, peer.owner()) || !(copies_ || unpack(peer, remote))) {
    fail_batch(peer, slot, Code::permission);
    if (slot.quiet()) finish(peer, index, slot.code);
    return Posted::failed;
  }
  const bool write = slot.batch.direction == Direction::write;
  const std::uint64_t bytes_max =
      copies_ && write ? kCopyBytes : static_cast<std::uint64_t>(config_.op_bytes);
  const std::uint64_t here = cursor.local(), there = cursor.remote();
  std::uint64_t bytes = 0;
  do {
    const std::uint64_t n = std::min(cursor.stretch(), bytes_max - bytes);
    cursor.take(n);
    bytes += n;
  } while (bytes < bytes_max && !cursor.done() && cursor.op().local_region == local_region &&
           cursor.op().remote_region == remote_region && cursor.local() == here + bytes &&
           cursor.remote() == there + bytes);

  const std::uint32_t number =
      take_operation(write ? Operation::Kind::put : Operation::Kind::get, peer, index);
  operations_[number].bytes = bytes;
  under_way_bytes_ += bytes;
  std::byte* const data = local.memory.data + here;
  // Whatever becomes of it, it may be seen there from now on.
  const BatchCursor before = slot.cursor;
  const bool unflushed = slot.unflushed;
  slot.cursor = cursor;
  slot.unflushed = slot.unflushed || write;
  const Posted posted = copies_ ? post_copy(peer, number, remote.name, there, data)
                                : post_rma(peer, number, local, remote, there, data);
  if (posted == Posted::again) {
    slot.cursor = before;
    slot.unflushed = unflushed;
  }
  return posted;
}

UcxLink::Posted UcxLink::post_rma(Peer& peer, std::uint32_t number, const LocalMemory& local,
                                  const RemoteKey& remote, std::uint64_t offset, std::byte* data) {
  ucp_request_param_t params = params_of(number);
  params.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMORY_TYPE | UCP_OP_ATTR_FIELD_MEMH;
  params.memory_type = UCS_MEMORY_TYPE_HOST;
  params.memh = local.mapped.get();
  const std::uint64_t bytes = operations_[number].bytes;
  const std::uint64_t target = remote.name.base + offset;
  return outcome(operations_[number].kind == Operation::Kind::put
                     ? api().put_nbx(peer.ep, data, bytes, target, remote.key.get(), &params)
                     : api().get_nbx(peer.ep, data, bytes, target, remote.key.get(), &params),
                 peer, number);
}

// What says that all puts to this peer so far have arrived; kNoSlot: for no batch.
UcxLink::Posted UcxLink::post_flush(Peer& peer, std::uint32_t index) {
  if (operations_.full() || (copies_ && peer.asked >= kAnswersMax)) return Posted::again;
  const std::uint32_t number = take_operation(Operation::Kind::flush, peer, index);
  const ucp_request_param_t params = params_of(number);
  if (index != kNoSlot) batches_[index].flush_posted = true;
  const Posted posted = copies_ ? post_fence(peer, number, index)
                                : outcome(api().ep_flush_nbx(peer.ep, &params), peer, number);
  if (posted == Posted::yes) flushes_.add();
  if (posted == Posted::again && index != kNoSlot) batches_[index].flush_posted = false;
  return posted;
}

std::uint32_t UcxLink::take_operation(Operation::Kind kind, const Peer& peer, std::uint32_t batch) {
  const std::uint32_t number = operations_.take();
  Operation& operation = operations_[number];
  operation.kind = kind;
  operation.peer = peer.id.value;
  operation.batch = batch;
  operation.cookie = ++cookies_ << kSlotBits | number;
  return number;
}

ucp_request_param_t UcxLink::params_of(std::uint32_t number) {
  ucp_request_param_t params{};
  params.op_attr_mask =
      UCP_OP_ATTR_FIELD_REQUEST | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.request = first_request_ + number * request_stride_;
  params.cb.send = on_complete;
  params.user_data = this;
  return params;
}

// What became of a post. Whatever it is, the operation is either under way or free again.
UcxLink::Posted UcxLink::outcome(ucs_status_ptr_t result, Peer& peer, std::uint32_t number) {
  Operation& operation = operations_[number];
  const ucs_status_t status = UCS_PTR_STATUS(result);
  const Fault fault =
      status == UCS_OK || status == UCS_INPROGRESS ? Fault::other : classify(status);
  if (status != UCS_OK && status != UCS_INPROGRESS && fault == Fault::no_resource) {
    under_way_bytes_ -= operation.bytes;
    if (operation.waits) --peer.asked;
    operations_.give(number);
    again_.add();
    stalled_ = true;
    return Posted::again;
  }
  posted_.add();
  ++under_way_;
  ++peer.operations;
  if (operation.batch != kNoSlot) ++batches_[operation.batch].operations;
  if (status == UCS_INPROGRESS) return Posted::yes;
  operation.sent = true;
  if (status == UCS_OK && operation.waits) return Posted::yes;
  complete(number, status);
  return status == UCS_OK ? Posted::yes : Posted::failed;
}

// From inside UCX: only remembered.
void UcxLink::on_complete(void* request, ucs_status_t status, void* user_data) {
  UcxLink& self = *static_cast<UcxLink*>(user_data);
  const auto offset = static_cast<std::byte*>(request) - self.first_request_;
  const auto number =
      static_cast<std::uint32_t>(static_cast<std::size_t>(offset) / self.request_stride_);
  Operation& operation = self.operations_[number];
  operation.status = status;
  operation.sent = true;
  if (status != UCS_OK || !operation.waits) self.operations_.push(self.completed_, number);
}

void UcxLink::progress() {
  busy_ = false;
  for (int i = 0; i < kProgressPerPoll && may_receive(); ++i) {
    busy_ = api().worker_progress(worker_->worker()) > 0;
    if (!busy_) return;
  }
}

void UcxLink::drain_completions() {
  while (!completed_.empty()) {
    const std::uint32_t number = completed_.head;
    operations_.erase(completed_, number);
    complete(number, operations_[number].status);
  }
}

void UcxLink::complete(std::uint32_t number, ucs_status_t status) {
  const Operation done = operations_[number];
  operations_.give(number);
  --under_way_;
  under_way_bytes_ -= done.bytes;
  if (done.memory != MemoryId{}) memory_.release(std::span(&done.memory, 1));
  Peer* const peer = find_peer({done.peer});
  if (peer == nullptr) return;
  --peer->operations;
  if (done.waits) --peer->asked;
  if (status == UCS_OK) {
    peer->probed_ns = INT64_MAX;
    peer->active = peer->active || done.batch != kNoSlot;
  }
  if (done.batch != kNoSlot) settle(*peer, done.batch, done, status);
  if (status == UCS_OK) return;
  const Fault fault = classify(status);
  peer->force = peer->force || peer->state == PeerState::closing;
  // Without flushes, and where a message is missing, nothing more can be said of what has arrived.
  if (copies_ || done.kind == Operation::Kind::flush || done.batch == kNoSlot ||
      about(fault).peer_lost) {
    lose(*peer, fault, status);
  } else {
    faults_[static_cast<std::size_t>(fault)].add();
  }
}

// One operation of a batch less.
void UcxLink::settle(Peer& peer, std::uint32_t index, const Operation& done, ucs_status_t status) {
  BatchSlot& slot = batches_[index];
  --slot.operations;
  if (status != UCS_OK) {
    fail_batch(peer, slot, about(classify(status)).code);
  } else if (done.kind == Operation::Kind::get && done.code != Code::ok) {
    fail_batch(peer, slot, done.code);
  } else if (done.kind == Operation::Kind::note) {
    notes_sent_.add();
  } else if (done.kind == Operation::Kind::put) {
    slot.bytes_moved += done.bytes;
  } else if (done.kind == Operation::Kind::get) {
    slot.bytes_done += done.bytes;
    read_bytes_.add(done.bytes);
  } else {
    slot.unflushed = slot.flush_posted = false;
    if (done.code == Code::ok) {
      written_bytes_.add(slot.bytes_moved - slot.bytes_done);
      slot.bytes_done = slot.bytes_moved;
    } else {
      fail_batch(peer, slot, done.code);
    }
  }
  if (slot.quiet() && (slot.ending || slot.all_posted())) {
    finish(peer, index, slot.ending ? slot.code : Code::ok);
  }
}

// No more of it is posted; its first failure is its code.
void UcxLink::fail_batch(Peer& peer, BatchSlot& slot, Code code) {
  if (slot.ending) return;
  slot.ending = true;
  slot.code = peer.state == PeerState::closing ? peer.down_code : code;
}

}  // namespace kvl::ucx
