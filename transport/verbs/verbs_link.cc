// Batches: taken, checked, run in turns, delivered; and when the owner may sleep.
#include "transport/verbs/verbs_link.h"

#include <algorithm>

#include "kvl/log.h"

namespace kvl::verbs {
namespace {

constexpr std::uint32_t kPostsPerPoll = 128;
constexpr std::uint32_t kMessagesMax = 1024;        // under way to all peers
constexpr std::int64_t kWatchNs = 1'000'000;        // what wakes nobody is looked at this often
constexpr std::int64_t kDeviceLookNs = 50'000'000;  // where the owner never sleeps

std::uint32_t message_slots(const OpenPort& port) {
  return std::min(kMessagesMax, port.sends_max());
}

}  // namespace

VerbsLink::VerbsLink(const FoundPort& found, const VerbsConfig& config, const LinkContext& context,
                     std::unique_ptr<OpenPort> port)
    : device_(found.device),
      config_(config),
      context_(context),
      port_(std::move(port)),
      memory_(*port_),
      messages_(message_slots(*port_) + port_->rq_depth()),
      message_slots_(message_slots(*port_)),
      arrived_(port_->rq_depth()),
      batches_(static_cast<std::uint32_t>(config.batches_inflight_max)) {}

Result<std::unique_ptr<Link>> VerbsLink::open(const VerbsApi& api, const FoundPort& found,
                                              const VerbsConfig& config,
                                              const LinkContext& context) {
  Result<std::unique_ptr<OpenPort>> port = OpenPort::open(api, found, config);
  if (!port.ok()) return port.status();
  std::unique_ptr<VerbsLink> link(new VerbsLink(found, config, context, std::move(*port)));
  KVL_TRY(link->prepare());
  return std::unique_ptr<Link>(std::move(link));
}

Status VerbsLink::prepare() {
  const VerbsApi& api = port_->api();
  const std::size_t bytes = messages_.size() * sizeof(PeerMessage);
  ibv_mr* const mr =
      api.reg_mr(port_->pd(), messages_.data(), bytes,
                 reinterpret_cast<std::uintptr_t>(messages_.data()), IBV_ACCESS_LOCAL_WRITE);
  if (mr == nullptr) return verbs_error("register message buffers: see ulimit -l", errno);
  messages_mr_ = Owned<ibv_mr>(mr, {api.dereg_mr});
  to_post_.reserve(port_->rq_depth());
  for (std::uint32_t i = 0; i < port_->rq_depth(); ++i) to_post_.push_back(i);
  post_receives();
  const PortAddress& address = port_->address();
  log(LogLevel::info, "verbs.opened",
      {{"device", device_.name},
       {"domain", device_.domain},
       {"gid_index", address.gid_index},
       {"mtu", 128U << static_cast<unsigned>(address.mtu)},
       {"send_queue", port_->sq_depth()},
       {"completions", port_->sends_max() + port_->rq_depth()},
       {"reads", static_cast<unsigned>(port_->reads_max())},
       {"operation_bytes", port_->op_bytes_max()}});
  return {};
}

VerbsLink::~VerbsLink() {
  say_goodbye_to_all();
  // Nothing touches memory any more once the queue pairs are gone.
  peers_.for_each([](std::uint64_t, std::unique_ptr<Peer>& peer) { peer.reset(); });
}

Peer* VerbsLink::find_peer(PeerId id) {
  std::unique_ptr<Peer>* const peer = peers_.find(id.value);
  return peer == nullptr ? nullptr : peer->get();
}

Result<MemoryId> VerbsLink::add_memory(const Memory& memory) {
  return memory_.add(memory, !context_.memory_ops.direct(memory.kind));
}

Result<Blob> VerbsLink::export_memory(MemoryId id, PeerId peer_id) {
  const Peer* const peer = find_peer(peer_id);
  if (peer == nullptr) return Status{Code::invalid_argument, "stale peer"};
  const Result<RemoteName> name = memory_.tell(id, peer_id.value);
  if (!name.ok()) return name.status();
  return encode(*name, peer->token);
}

Result<RemoteId> VerbsLink::import_memory(PeerId peer_id, std::span<const std::byte> blob) {
  const Peer* const peer = find_peer(peer_id);
  if (peer == nullptr) return Status{Code::invalid_argument, "stale peer"};
  return remotes_.import(peer_id, peer->owner(), blob);
}

Status VerbsLink::post(const Batch& batch) {
  Peer* const peer = find_peer(batch.peer);
  if (peer == nullptr || peer->closed_here) return {Code::invalid_argument, "stale peer"};
  if (batches_.full()) return {Code::exhausted, "batches in flight"};
  if (batch.direction == Direction::read && peer->state == PeerState::up && !peer->qp->can_read()) {
    return {Code::unsupported, "one of the two devices serves no reads"};
  }
  const bool moves = !batch.ops.empty();
  if (moves) KVL_TRY(memory_.hold(batch.locals));
  if (const Status status = remotes_.check(batch, memory_, peer->owner()); !status.ok()) {
    if (moves) memory_.release(batch.locals);
    return status;
  }
  if (moves) remotes_.hold(batch.remotes);
  const std::uint32_t index = batches_.take(batch, peer->queue);
  ++peer->batches_open;
  rounds_.work(*peer);
  if (peer->state == PeerState::closing) finish(*peer, index, peer->down_code);
  return {};
}

Status VerbsLink::cancel(Ticket ticket) {
  const std::uint32_t i = batches_.find(ticket);
  if (i == kNoSlot) return {Code::not_found, "no such batch in flight"};
  BatchSlot& slot = batches_[i];
  Peer* const peer = find_peer(slot.batch.peer);
  if (peer == nullptr || slot.ending) return {};          // its event is on its way
  if (slot.all_posted() && slot.requests > 0) return {};  // … as soon as the device is done
  fail_batch(*peer, slot, Code::aborted);
  if (slot.requests == 0) finish(*peer, i, slot.code);
  return {};
}

// No more of it is posted; its first failure is its code.
void VerbsLink::fail_batch(Peer& peer, BatchSlot& slot, Code code) {
  if (slot.ending) return;
  slot.ending = true;
  slot.code = peer.state == PeerState::closing ? peer.down_code : code;
}

// Nothing touches the batch's memory any more: only its event is left.
void VerbsLink::finish(Peer& peer, std::uint32_t index, Code code) {
  batches_.finish(index, peer.queue, code);
  BatchSlot& slot = batches_[index];
  if (slot.batch.ops.empty()) return;
  remotes_.release(slot.batch.remotes);
  memory_.release(slot.batch.locals);
}

void VerbsLink::look_at(Peer& peer, std::int64_t now_ns, std::uint32_t& budget, EventSink& sink) {
  if (peer.state == PeerState::up && !peer.up_announced) announce_up(peer, sink);
  if (peer.state == PeerState::connecting) greet(peer);
  if (peer.state != PeerState::closing && peer.may_send()) run_peer(peer, now_ns, budget);
  if (peer.state == PeerState::connecting && peer.deadline_ns <= now_ns) {
    log(LogLevel::info, "verbs.no_hello",
        {{"device", device_.name},
         {"code", to_string(Code::timed_out)},
         {"hint",
          "the peer's process does not poll, or no packet passes between the two ports: kvlane "
          "doctor PEER"}});
    begin_close(peer, Code::timed_out);
  }
}

// When a peer without batches wants to be looked at; 0: in every poll.
std::int64_t VerbsLink::next_look_ns(const Peer& peer) {
  if (peer.state == PeerState::closing || peer.state == PeerState::opened) return INT64_MAX;
  const bool waits = peer.state == PeerState::connecting || !peer.up_announced ||
                     !peer.owed.empty() || peer.qp->ends_silent();
  return waits ? 0 : std::min(peer.deadline_ns, peer.probe_ns);
}

std::size_t VerbsLink::poll(std::span<Event> events) {
  EventSink sink{events};
  stalled_ = false;
  drain_completions();
  take_messages(sink);
  post_receives();
  if (memory_.has_forgotten()) queue_forgotten();
  const std::int64_t round_ns = context_.clock.now_ns();
  if (look_ns_ <= round_ns) {
    take_device_events();
    look_ns_ = round_ns + kDeviceLookNs;
  }
  std::uint32_t budget = kPostsPerPoll;
  rounds_.run(
      round_ns, [&](Peer& peer) { look_at(peer, round_ns, budget, sink); }, next_look_ns);
  batches_.deliver(sink, [this](PeerId id) {
    if (Peer* const peer = find_peer(id)) --peer->batches_open;
  });
  if (unsettled_ > 0) {
    const std::int64_t now_ns = context_.clock.now_ns();
    const std::vector<Peer*>& peers = rounds_.peers();
    for (std::size_t i = peers.size(); i-- > 0;) {
      if (peers[i]->state == PeerState::closing) step_closing(*peers[i], now_ns, sink);
    }
  }
  return sink.count;
}

// Whether poll() would get anywhere with this peer.
bool VerbsLink::has_work(const Peer& peer) {
  if (peer.state == PeerState::closing) {
    return peer.batches_open == 0 && (!peer.qp || peer.qp->under_way() == 0);
  }
  if (peer.state == PeerState::up && !peer.up_announced) return true;
  if (peer.state == PeerState::connecting && !peer.ready_said) return !stalled_;
  if (peer.state == PeerState::connecting && peer.ready_heard && !peer.hello_queued) return true;
  if (stalled_ || !peer.may_send() || room(peer) == 0) return false;
  if (peer.qp->ends_silent()) return true;
  if (!peer.owed.empty()) return !message_slots_.full();
  if (peer.state != PeerState::up) return false;
  for (std::uint32_t b = peer.queue.head; b != kNoSlot; b = batches_[b].next) {
    BatchSlot& slot = batches_[b];
    slot.started = slot.started || slot.batch.after.ready();
    if (!slot.started || !slot.wants_poll()) continue;
    if (slot.all_posted()) return true;
    if (slot.cursor.done() ? !message_slots_.full() : !full()) return true;
  }
  return false;
}

bool VerbsLink::arm() {
  if (batches_.any_finished() || arrived_count_ > 0 || memory_.has_forgotten()) return false;
  const std::vector<Peer*>& peers = rounds_.peers();
  if (std::any_of(peers.begin(), peers.end(), [this](Peer* peer) { return has_work(*peer); })) {
    return false;
  }
  if (take_device_events()) return false;
  port_->arm_events();
  return !drain_completions();
}

std::int64_t VerbsLink::next_timer_ns() const {
  const std::int64_t now_ns = context_.clock.now_ns();
  // A ReadyToken is a word in memory that wakes nobody.
  if (stalled_ || batches_.queued() > 0 || !to_post_.empty()) return now_ns + kWatchNs;
  std::int64_t next = INT64_MAX;
  for (const Peer* peer : rounds_.peers())
    next = std::min({next, peer->deadline_ns, peer->probe_ns});
  return next;
}

}  // namespace kvl::verbs
