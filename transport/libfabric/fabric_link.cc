// Batches: taken, checked, run in turns, delivered; and when the owner may sleep.
#include "transport/libfabric/fabric_link.h"

#include <algorithm>
#include <utility>

#include "kvl/log.h"

namespace kvl::libfabric {
namespace {

constexpr std::uint32_t kPostsPerPoll = 64;
constexpr std::int64_t kWatchNs = 1'000'000;      // what wakes nobody is looked at this often
constexpr std::int64_t kProgressNs = 10'000'000;  // providers progress in our calls

}  // namespace

FabricLink::FabricLink(const FoundDevice& found, const FabricConfig& config,
                       const LinkContext& context, std::unique_ptr<Endpoint> endpoint,
                       std::uint32_t version)
    : device_(found.device),
      config_(config),
      context_(context),
      efa_(found.efa),
      direct_(found.direct),
      delivery_complete_(found.delivery_complete),
      version_(version),
      endpoint_(std::move(endpoint)),
      memory_(*endpoint_, static_cast<std::uint64_t>(config.mr_bytes)),
      operations_(endpoint_->tx_depth()),
      batches_(static_cast<std::uint32_t>(config.batches_inflight_max)) {}

Result<std::unique_ptr<Link>> FabricLink::open(const FabricApi& api, const FoundDevice& found,
                                               const FabricConfig& config,
                                               const LinkContext& context) {
  Result<std::unique_ptr<Endpoint>> endpoint = Endpoint::open(api, found, config);
  if (!endpoint.ok()) return endpoint.status();
  std::unique_ptr<FabricLink> link(
      new FabricLink(found, config, context, std::move(*endpoint), api.version()));
  KVL_TRY(link->prepare());
  return std::unique_ptr<Link>(std::move(link));
}

Status FabricLink::prepare() {
  const std::uint32_t tx = endpoint_->tx_depth(), rx = endpoint_->rx_depth();
  immediates_left_ = endpoint_->immediates_max();
  op_bytes_max_ =
      std::min(static_cast<std::uint64_t>(config_.op_bytes), endpoint_->rma_bytes_max());
  messages_.resize(std::size_t{tx} + rx);
  receives_ = std::make_unique<Operation[]>(rx);
  arrived_.resize(rx);
  to_post_.reserve(rx);
  if (endpoint_->mr_mode(FI_MR_LOCAL) != 0) {
    fid_mr* mr = nullptr;
    const int error =
        ::fi_mr_reg(endpoint_->domain(), messages_.data(), messages_.size() * sizeof(PeerMessage),
                    FI_SEND | FI_RECV, 0, 0, 0, &mr, nullptr);
    if (error != 0) return {Code::unavailable, "register message buffers", -error};
    messages_mr_.reset(mr);
    messages_desc_ = ::fi_mr_desc(mr);
  }
  for (std::uint32_t i = 0; i < rx; ++i) {
    receives_[i].kind = Operation::Kind::receive;
    receives_[i].batch = i;
    to_post_.push_back(i);
  }
  post_receives();
  say_what_lacks();
  log(LogLevel::info, "libfabric.opened",
      {{"device", device_.name},
       {"domain", device_.domain},
       {"version", std::to_string(FI_MAJOR(version_)) + "." + std::to_string(FI_MINOR(version_))},
       {"operations", tx},
       {"operation_bytes", op_bytes_max_},
       {"delivery_complete", delivery_complete_ ? "yes" : "no"},
       {"wakes", wait_fd() >= 0 ? "yes" : "no"}});
  return {};
}

// An EFA that is not at its best says so once.
void FabricLink::say_what_lacks() const {
  if (!efa_ || direct_) return;
  const bool write = !endpoint_->emulated_write(), read = !endpoint_->emulated_read();
  log(LogLevel::info, "libfabric.not_direct",
      {{"device", device_.name},
       {"hint",
        "efa-direct needs libfabric 2.1 and a device with RDMA read and write: the provider's own "
        "protocol, efa, carries the bytes"}});
  if (write && read) return;
  log(LogLevel::warning, "libfabric.emulated",
      {{"device", device_.name},
       {"code", to_string(Code::unsupported)},
       {"write", write ? "device" : "CPU"},
       {"read", read ? "device" : "CPU"},
       {"hint",
        read ? "this device reads but does not write: only a handoff by pull uses it"
             : "this device or its driver has no RDMA: bytes are copied by CPUs; tcp may be as "
               "fast"}});
}

FabricLink::~FabricLink() {
  say_goodbye_to_all();
  for (Peer* const peer : rounds_.peers()) remove_address(*peer);
  endpoint_->shut();
}

Peer* FabricLink::find_peer(PeerId id) {
  std::unique_ptr<Peer>* const peer = peers_.find(id.value);
  return peer == nullptr ? nullptr : peer->get();
}

Status FabricLink::post(const Batch& batch) {
  Peer* const peer = find_peer(batch.peer);
  if (peer == nullptr || peer->closed_here) return {Code::invalid_argument, "stale peer"};
  if (batches_.full()) return {Code::exhausted, "batches in flight"};
  const bool moves = !batch.ops.empty();
  const Cap needed = batch.direction == Direction::write ? Cap::write : Cap::read;
  if (moves && (device_.caps & static_cast<std::uint32_t>(needed)) == 0) {
    return {Code::unsupported, "the device cannot do that itself"};
  }
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

Status FabricLink::cancel(Ticket ticket) {
  const std::uint32_t i = batches_.find(ticket);
  if (i == kNoSlot) return {Code::not_found, "no such batch in flight"};
  BatchSlot& slot = batches_[i];
  Peer* const peer = find_peer(slot.batch.peer);
  if (peer == nullptr || slot.ending) return {};            // its event is on its way
  if (slot.all_posted() && slot.operations > 0) return {};  // … as soon as the provider is done
  fail_batch(*peer, slot, Code::aborted);
  if (slot.operations == 0) finish(*peer, i, slot.code);
  return {};
}

// Nothing touches the batch's memory any more: only its event is left.
void FabricLink::finish(Peer& peer, std::uint32_t index, Code code) {
  batches_.finish(index, peer.queue, code);
  BatchSlot& slot = batches_[index];
  if (slot.count_slot != kNoSlot) end_counting(peer, slot, code);
  if (slot.batch.ops.empty()) return;
  remotes_.release(slot.batch.remotes);
  memory_.release(slot.batch.locals);
}

bool FabricLink::runnable(const Peer& peer, BatchSlot& slot) {
  if (peer.state != PeerState::up || peer.held || slot.ending) return false;
  slot.started = slot.started || slot.batch.after.ready();
  if (!slot.started) return false;
  if (slot.cursor.done()) {
    return slot.operations == 0 || (slot.count_slot != kNoSlot && !slot.note_posted);
  }
  return !full();
}

// What is due to a peer: its hello, what it is to know, its batches, whether it lives.
void FabricLink::speak(Peer& peer, std::int64_t now_ns, std::uint32_t& budget) {
  if (peer.accepted && peer.hello_ns <= now_ns) greet(peer, now_ns);
  if (peer.state == PeerState::up) say_counts(peer);
  while (peer.state == PeerState::up && !peer.owed.empty() &&
         post_message(peer, peer.owed.front().type, peer.owed.front().value) == Posted::yes) {
    peer.owed.pop_front();
  }
  if (peer.state == PeerState::up && peer.up_announced && !peer.queue.empty()) {
    run_batches(peer, budget);
  }
  if (peer.state == PeerState::up && peer.probe_ns <= now_ns) probe(peer, now_ns);
}

void FabricLink::look_at(Peer& peer, std::int64_t now_ns, std::uint32_t& budget, EventSink& sink) {
  if (peer.state == PeerState::up && !peer.up_announced) announce_up(peer, sink);
  if (peer.state == PeerState::connecting && !peer.said_clear && is_clear(peer)) {
    say(peer, MessageType::clear, 0);
    peer.said_clear = true;
  }
  if (peer.held) {
    step_held(peer);
  } else {
    speak(peer, now_ns, budget);
  }
  if ((peer.state == PeerState::connecting || peer.held) && peer.deadline_ns <= now_ns) {
    log(LogLevel::info, "libfabric.no_hello",
        {{"device", device_.name},
         {"code", to_string(Code::timed_out)},
         {"hint",
          "the peer's process does not poll, or no packet passes between the two devices: "
          "kvlane doctor PEER"}});
    begin_close(peer, Code::timed_out);
  }
}

// When a peer without batches wants to be looked at; 0: in every poll.
std::int64_t FabricLink::next_look_ns(const Peer& peer) {
  if (peer.state == PeerState::closing || peer.state == PeerState::opened) return INT64_MAX;
  const bool waits = peer.state == PeerState::connecting || peer.held || !peer.up_announced ||
                     !peer.owed.empty() || owes_counts(peer);
  return waits ? 0 : std::min({peer.deadline_ns, peer.hello_ns, peer.probe_ns});
}

std::size_t FabricLink::poll(std::span<Event> events) {
  EventSink sink{events};
  stalled_ = false;
  drain_completions();
  take_messages(sink);
  if (!counted_notes_.empty()) show_counted(sink);
  post_receives();
  if (memory_.has_forgotten()) queue_forgotten();
  std::uint32_t budget = kPostsPerPoll;
  const std::int64_t round_ns = context_.clock.now_ns();
  rounds_.run(
      round_ns, [&](Peer& peer) { look_at(peer, round_ns, budget, sink); }, next_look_ns);
  if (doorbell_for_ != 0) ring_doorbell();
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
  if (give_up_) step_move(context_.clock.now_ns());
  return sink.count;
}

bool FabricLink::arm() {
  if (batches_.any_finished() || arrived_count_ > 0 || !counted_notes_.empty() ||
      memory_.has_forgotten())
    return false;
  for (Peer* const peer : rounds_.peers()) {
    if (peer->state == PeerState::up && !peer->up_announced) return false;
    if (peer->state == PeerState::closing && peer->batches_open == 0 && peer->operations == 0 &&
        (!peer->said_released || peer->fenced)) {
      return false;
    }
    if (stalled_) continue;  // next_timer_ns() sees to it
    if (peer->state == PeerState::up && !peer->held && !peer->owed.empty()) return false;
    for (std::uint32_t b = peer->queue.head; b != kNoSlot; b = batches_[b].next) {
      if (runnable(*peer, batches_[b])) return false;
    }
  }
  return wait_fd() < 0 || endpoint_->may_wait();
}

std::int64_t FabricLink::next_timer_ns() const {
  const std::int64_t now_ns = context_.clock.now_ns();
  // A ReadyToken is a word in memory that wakes nobody; nor does every provider.
  if (wait_fd() < 0 || stalled_ || doorbell_for_ != 0 || !to_post_.empty()) {
    return now_ns + kWatchNs;
  }
  std::int64_t next = batches_.queued() > 0 ? now_ns + kWatchNs : move_until_ns_;
  if (under_way_ > 0) next = std::min(next, now_ns + kProgressNs);
  for (const Peer* peer : rounds_.peers()) {
    const bool late = peer->state == PeerState::closing && peer->deadline_ns <= now_ns;
    next = std::min(
        {next, late ? peer->give_up_ns : peer->deadline_ns, peer->hello_ns, peer->probe_ns});
  }
  return next;
}

}  // namespace kvl::libfabric
