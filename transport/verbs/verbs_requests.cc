// What is posted to the device, and what has completed.
#include <algorithm>
#include <cerrno>

#include "transport/verbs/verbs_link.h"

namespace kvl::verbs {
namespace {

constexpr std::uint64_t kReceive = std::uint64_t{1} << 63;  // in the id of a work request
constexpr std::uint32_t kSignalEvery = 32;                  // requests of a chain
constexpr int kEntries = 32;
constexpr int kReadsPerPoll = 8;
constexpr std::uint32_t kReceivesAtOnce = 64;

}  // namespace

// How many requests may be added to the chain for this peer.
std::uint32_t VerbsLink::room(const Peer& peer) const {
  return std::min({peer.qp->room(), port_->sends_max() - under_way_, Chain::kMax});
}

// Chains of this peer's, until there is nothing more to post or no room.
void VerbsLink::run_peer(Peer& peer, std::int64_t now_ns, std::uint32_t& budget) {
  while (budget > 0 && peer.state != PeerState::closing) {
    const std::uint32_t space = std::min(room(peer), budget);
    chain_.clear();
    if (space == 0) return;
    plan_owed(peer, space);
    if (peer.state == PeerState::up && peer.up_announced) plan_batches(peer, space);
    const bool probes = peer.probe_ns <= now_ns;
    if (probes) peer.probe_ns = now_ns + config_.probe_ms * 1'000'000;
    // Only who is spoken to is known to live; and who waits for a completion must get one.
    const bool must_ask = (probes && peer.qp->under_way() == 0) || peer.qp->ends_silent();
    if (chain_.count() == 0 && must_ask) chain_.add({}, {});
    if (chain_.count() == 0) return;
    budget -= chain_.count();
    if (!post_chain(peer)) return;
  }
}

void VerbsLink::plan_owed(Peer& peer, std::uint32_t space) {
  while (!peer.owed.empty() && chain_.count() < space && !message_slots_.full()) {
    const Owed owed = peer.owed.front();
    peer.owed.pop_front();
    plan_message(peer, Sent::Kind::message, owed);
  }
}

void VerbsLink::plan_batches(Peer& peer, std::uint32_t space) {
  for (std::uint32_t i = peer.queue.head; i != kNoSlot && chain_.count() < space;) {
    const std::uint32_t next = batches_[i].next;
    BatchSlot& slot = batches_[i];
    slot.started = slot.started || slot.batch.after.ready();
    if (slot.started && slot.wants_poll()) plan_batch(peer, i, space);
    i = next;
  }
}

void VerbsLink::plan_batch(Peer& peer, std::uint32_t index, std::uint32_t space) {
  BatchSlot& slot = batches_[index];
  if (slot.batch.direction == Direction::read && !peer.qp->can_read()) {  // posted before peer_up
    fail_batch(peer, slot, Code::unsupported);
    return finish(peer, index, slot.code);
  }
  const std::uint32_t before = chain_.count();
  Regions regions;
  while (!slot.cursor.done() && chain_.count() < space && !full()) {
    if (!plan_run(peer, index, regions)) break;
    if (chain_.count() % kSignalEvery == 0) chain_.signal_last();
  }
  if (!slot.ending && slot.cursor.done() && !slot.batch.note.empty() && chain_.count() < space &&
      !message_slots_.full()) {
    plan_message(peer, Sent::Kind::note, {MessageType::note, 0}, slot.batch.note, index);
    slot.note_posted = true;
  }
  if (chain_.count() > before && slot.all_posted()) chain_.signal_last();
  if (slot.requests == 0 && (slot.ending || slot.all_posted())) finish(peer, index, slot.code);
}

// False: the peer has removed that memory, or it never was ours to use.
bool VerbsLink::enter_regions(Peer& peer, const BatchSlot& slot, Regions& regions) {
  const PageOp& op = slot.cursor.op();
  if (op.local_region != regions.local_region) {
    regions.local_region = op.local_region;
    regions.local = memory_.find(slot.batch.locals[op.local_region]);
    const bool by_cpu = context_.memory_ops.direct(regions.local->memory.kind);
    const bool write = slot.batch.direction == Direction::write;
    regions.inline_bytes = write && by_cpu ? peer.qp->inline_bytes() : 0;
  }
  if (op.remote_region != regions.remote_region) {
    RemoteMemory& remote = *remotes_.find(slot.batch.remotes[op.remote_region]);
    if (remote.gone || !remotes_.verify(remote, peer.owner())) return false;
    regions.remote_region = op.remote_region;
    regions.remote = &remote;
  }
  return true;
}

// The next stretch of a batch: pieces that lie side by side on both sides are one request.
bool VerbsLink::plan_run(Peer& peer, std::uint32_t index, Regions& regions) {
  BatchSlot& slot = batches_[index];
  BatchCursor& cursor = slot.cursor;
  if (!enter_regions(peer, slot, regions)) {
    fail_batch(peer, slot, Code::permission);
    return false;
  }
  const RemoteMemory& remote = *regions.remote;
  const LocalMemory& local = *regions.local;
  const BatchCursor before = cursor;
  const std::uint64_t here = cursor.local(), there = cursor.remote();
  const std::uint64_t bytes_max = port_->op_bytes_max();
  std::uint64_t bytes = 0;
  do {
    const std::uint64_t n = std::min(cursor.stretch(), bytes_max - bytes);
    cursor.take(n);
    bytes += n;
  } while (bytes < bytes_max && !cursor.done() &&
           cursor.op().local_region == regions.local_region &&
           cursor.op().remote_region == regions.remote_region && cursor.local() == here + bytes &&
           cursor.remote() == there + bytes);

  const bool write = slot.batch.direction == Direction::write;
  ibv_send_wr& request =
      chain_.add({bytes, index, kNoSlot, write ? Sent::Kind::write : Sent::Kind::read}, before);
  request.opcode = write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ;
  request.wr.rdma.remote_addr = remote.name.base + there;
  request.wr.rdma.rkey = static_cast<std::uint32_t>(remote.name.key);
  request.num_sge = 1;
  request.sg_list->addr = reinterpret_cast<std::uintptr_t>(local.memory.data) + here;
  request.sg_list->length = static_cast<std::uint32_t>(bytes);
  request.sg_list->lkey = local.mr->lkey;
  if (bytes <= regions.inline_bytes) request.send_flags |= IBV_SEND_INLINE;
  ++slot.requests;
  under_way_bytes_ += bytes;
  return true;
}

void VerbsLink::plan_message(Peer& peer, Sent::Kind kind, const Owed& what,
                             std::span<const std::byte> note, std::uint32_t batch) {
  const std::uint32_t number = message_slots_.take();
  PeerMessage& message = messages_[number];
  message = message_to(peer.remote, what.type, what.value, note);
  ibv_send_wr& request = chain_.add({0, batch, number, kind},
                                    batch == kNoSlot ? BatchCursor{} : batches_[batch].cursor);
  request.opcode = IBV_WR_SEND;
  request.num_sge = 1;
  request.sg_list->addr = reinterpret_cast<std::uintptr_t>(&message);
  request.sg_list->length = sizeof(message);
  request.sg_list->lkey = messages_mr_->lkey;
  if (sizeof(message) <= peer.qp->inline_bytes()) request.send_flags |= IBV_SEND_INLINE;
  if (batch != kNoSlot) ++batches_[batch].requests;
}

// False: the device took not all of it, which is as it was before, or the peer is lost.
bool VerbsLink::post_chain(Peer& peer) {
  const QueuePair::Posted posted = peer.qp->post(chain_);
  under_way_ += posted.count;
  posted_.add(posted.count);
  if (posted.count > 0) chains_.add();
  if (posted.error == 0) return true;
  take_back(peer, posted.count);
  if (posted.error == ENOMEM || posted.error == EAGAIN) {
    again_.add();
    stalled_ = true;
  } else {
    faults_[static_cast<std::size_t>(Fault::local)].add();
    lose(peer, Fault::local, posted.error, 0);
  }
  return false;
}

void VerbsLink::take_back(Peer& peer, std::uint32_t from) {
  for (std::uint32_t i = chain_.count(); i-- > from;) {
    const Sent& sent = chain_.sent(i);
    under_way_bytes_ -= sent.bytes;
    if (sent.message != kNoSlot) {
      const PeerMessage& message = messages_[sent.message];
      if (sent.kind == Sent::Kind::message) peer.owed.push_front({message.type, message.value});
      message_slots_.give(sent.message);
    }
    if (sent.batch == kNoSlot) continue;
    BatchSlot& slot = batches_[sent.batch];
    slot.cursor = chain_.before(i);
    if (sent.kind == Sent::Kind::note) slot.note_posted = false;
    if (--slot.requests == 0 && slot.ending) finish(peer, sent.batch, slot.code);
  }
}

// True: there was something.
bool VerbsLink::drain_completions() {
  std::array<ibv_wc, kEntries> entries;
  bool any = false;
  for (int i = 0; i < kReadsPerPoll; ++i) {
    const int count = ::ibv_poll_cq(port_->cq(), kEntries, entries.data());
    if (count < 0) {
      if (!gone_) lose_all(Fault::device_gone, count);
      gone_ = true;
    }
    if (count <= 0) return any;
    any = true;
    completions_.add(static_cast<std::uint64_t>(count));
    for (std::size_t k = 0; k < static_cast<std::size_t>(count); ++k) {
      const ibv_wc& entry = entries.at(k);
      if ((entry.wr_id & kReceive) != 0) {
        complete_receive(entry);
      } else {
        complete_send(entry);
      }
    }
    if (count < kEntries) return any;
  }
  return any;
}

// A queue pair works in order: what stands before a completion has been done, or has had its own.
void VerbsLink::complete_send(const ibv_wc& completion) {
  const auto known = by_tag_.find(static_cast<std::uint32_t>(completion.wr_id >> 32));
  if (known == by_tag_.end()) return;  // its queue pair was destroyed before it could flush
  Peer& peer = *known->second;
  const bool ok = completion.status == IBV_WC_SUCCESS;
  const Fault fault = ok ? Fault::other : classify(completion.status);
  // What is flushed follows from an error before it, or from our own closing.
  const bool news = !ok && (fault != Fault::flushed || peer.state != PeerState::closing);
  if (news) faults_[static_cast<std::size_t>(fault)].add();
  peer.qp->retire(completion.wr_id, [&](const Sent& sent, bool last) {
    settle(peer, sent, ok || !last, about(fault).code);
  });
  if (news) lose(peer, fault, completion.status, completion.vendor_err);
}

void VerbsLink::settle(Peer& peer, const Sent& sent, bool ok, Code code) {
  --under_way_;
  under_way_bytes_ -= sent.bytes;
  if (sent.message != kNoSlot) message_slots_.give(sent.message);
  if (sent.batch == kNoSlot) return;
  BatchSlot& slot = batches_[sent.batch];
  --slot.requests;
  if (!ok) {
    fail_batch(peer, slot, code);
  } else if (sent.kind == Sent::Kind::note) {
    notes_sent_.add();
  } else {
    slot.bytes_done += sent.bytes;
    (sent.kind == Sent::Kind::write ? written_bytes_ : read_bytes_).add(sent.bytes);
  }
  if (slot.requests == 0 && (slot.ending || slot.all_posted())) {
    finish(peer, sent.batch, slot.code);
  }
}

void VerbsLink::complete_receive(const ibv_wc& completion) {
  const auto buffer = static_cast<std::uint32_t>(completion.wr_id);
  if (buffer >= arrived_.size()) return;
  if (completion.status != IBV_WC_SUCCESS) {
    to_post_.push_back(buffer);
    return;
  }
  arrived_[(arrived_first_ + arrived_count_++) % arrived_.size()] = {buffer, completion.byte_len,
                                                                     completion.qp_num};
}

void VerbsLink::post_receives() {
  while (!to_post_.empty() && !gone_) {
    std::array<ibv_recv_wr, kReceivesAtOnce> requests{};
    std::array<ibv_sge, kReceivesAtOnce> ranges{};
    const auto count = std::min<std::size_t>(to_post_.size(), kReceivesAtOnce);
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t buffer = to_post_[to_post_.size() - 1 - i];
      PeerMessage& message = messages_[message_slots_.size() + buffer];
      ranges.at(i) = {reinterpret_cast<std::uintptr_t>(&message), sizeof(message),
                      messages_mr_->lkey};
      ibv_recv_wr& request = requests.at(i);
      request.wr_id = kReceive | buffer;
      request.sg_list = &ranges.at(i);
      request.num_sge = 1;
      request.next = i + 1 < count ? &requests.at(i + 1) : nullptr;
    }
    ibv_recv_wr* first_bad = nullptr;
    const int error = ::ibv_post_srq_recv(port_->srq(), requests.data(), &first_bad);
    const auto taken = error == 0             ? static_cast<std::ptrdiff_t>(count)
                       : first_bad == nullptr ? 0
                                              : first_bad - requests.data();
    to_post_.resize(to_post_.size() - static_cast<std::size_t>(taken));
    if (error != 0) return;
  }
}

}  // namespace kvl::verbs
