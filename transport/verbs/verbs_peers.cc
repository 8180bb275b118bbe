// Peers: offers, the hello that proves the connection, messages, loss and close.
#include <algorithm>

#include "kvl/log.h"
#include "transport/base/crypto.h"
#include "transport/verbs/verbs_link.h"

namespace kvl::verbs {
namespace {

constexpr std::int64_t kMs = 1'000'000;
constexpr std::int64_t kGoodbyeNs = 50 * kMs;
constexpr std::uint32_t kTagMask = 0x7FFFFFFF;  // the bit above tells receives apart

}  // namespace

Result<PeerId> VerbsLink::open_peer(PeerRole) {
  if (gone_) return Status{Code::unavailable, "the RDMA device is gone"};
  Result<std::unique_ptr<QueuePair>> qp = QueuePair::open(*port_, ++tags_ & kTagMask);
  if (!qp.ok()) return qp.status();
  const auto [id, slot] = peers_.insert();
  *slot = std::make_unique<Peer>();
  Peer& peer = **slot;
  peer.id = {id};
  peer.token.peer = id;
  crypto::random(peer.token.secret);
  peer.qp = std::move(*qp);
  by_tag_[peer.qp->tag()] = &peer;
  rounds_.add(peer);
  return peer.id;
}

Result<Blob> VerbsLink::offer(PeerId id) {
  const Peer* const peer = find_peer(id);
  if (peer == nullptr || !peer->qp) return Status{Code::invalid_argument, "stale peer"};
  return encode(Offer{peer->token, peer->qp->address()});
}

Status VerbsLink::accept(PeerId id, std::span<const std::byte> remote_offer) {
  Peer* const peer = find_peer(id);
  if (peer == nullptr || peer->state != PeerState::opened) {
    return {Code::invalid_argument, "stale peer, or accepted before"};
  }
  const Result<Offer> offer = decode_offer(remote_offer);
  if (!offer.ok()) return offer.status();
  KVL_TRY(peer->qp->connect(offer->address));
  peer->remote = offer->token;
  peer->accepted = true;
  peer->state = PeerState::connecting;
  rounds_.all();
  ++unsettled_;
  peer->deadline_ns = context_.clock.now_ns() + config_.connect_timeout_ms * kMs;
  return {};
}

// Over the control connection, for what the queue pair cannot carry. False: it cannot either.
bool VerbsLink::say(Peer& peer, MessageType type) {
  const PeerMessage message = message_to(peer.remote, type);
  return context_.control.send(peer.id, std::as_bytes(std::span(&message, 1))).ok();
}

// A queue pair that is not connected drops what comes, and its sender gives up. So each side says
// when its own is, and sends nothing before it has heard that of the other.
void VerbsLink::greet(Peer& peer) {
  if (!peer.ready_said) {
    peer.ready_said = say(peer, MessageType::hello);
    stalled_ = stalled_ || !peer.ready_said;
  }
  if (peer.ready_heard && !peer.hello_queued) {
    peer.hello_queued = true;
    peer.owed.push_front({MessageType::hello, 0});
  }
}

// The other side has sent through the queue pair: so it is connected, and answers.
void VerbsLink::come_up(Peer& peer) {
  peer.ready_heard = true;
  greet(peer);
  peer.state = PeerState::up;
  rounds_.all();
  peer.deadline_ns = INT64_MAX;
  peer.probe_ns = context_.clock.now_ns() + config_.probe_ms * kMs;
  --unsettled_;
  peers_up_.add();
}

void VerbsLink::take_messages(EventSink& sink) {
  while (arrived_count_ > 0) {
    const Arrived& arrived = arrived_[arrived_first_];
    const auto* const bytes =
        reinterpret_cast<const std::byte*>(&messages_[message_slots_.size() + arrived.buffer]);
    PeerMessage message;
    if (!decode({bytes, std::min<std::size_t>(arrived.bytes, sizeof(message))}, message)) {
      strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
    } else if (!take_message(message, arrived.queue_pair, sink)) {
      return;  // no room for its event
    }
    to_post_.push_back(arrived.buffer);
    arrived_first_ = (arrived_first_ + 1) % arrived_.size();
    --arrived_count_;
  }
}

// False: there is no room for its event yet.
bool VerbsLink::take_message(const PeerMessage& message, std::uint32_t queue_pair,
                             EventSink& sink) {
  Peer* const peer = find_peer({message.to_peer});
  if (peer == nullptr || !is_for(message, peer->token) ||
      (peer->qp && peer->qp->number() != queue_pair)) {
    strangers_[static_cast<std::size_t>(Stranger::unknown_token)].add();
    return true;
  }
  switch (message.type) {
    case MessageType::hello:
      if (peer->state == PeerState::connecting) come_up(*peer);
      return true;
    case MessageType::note:
      if (peer->state == PeerState::connecting || peer->state == PeerState::opened) return true;
      if (peer->closed_here || !peer->qp) return true;
      if (!peer->up_announced) announce_up(*peer, sink);
      if (sink.left() == 0) return false;
      show_note(peer->id, message.note, message.note_bytes, sink);
      notes_received_.add();
      return true;
    case MessageType::forget:
      remotes_.forget(peer->id, message.value);
      return true;
    case MessageType::goodbye:
      begin_close(*peer, Code::peer_lost);
      return true;
    case MessageType::nothing:
    case MessageType::clear:
    case MessageType::quiet:
    case MessageType::grant:
    case MessageType::uncount:
    case MessageType::freed:
      return true;
  }
  return true;
}

void VerbsLink::queue_forgotten() {
  memory_.take_forgotten(forgotten_);
  for (const auto& [id, serial] : forgotten_) {
    Peer* const peer = find_peer({id});
    if (peer != nullptr && peer->state != PeerState::closing) {
      peer->owed.push_back({MessageType::forget, serial});
    }
  }
  forgotten_.clear();
  rounds_.all();
}

void VerbsLink::on_control(PeerId id, std::span<const std::byte> bytes) {
  rounds_.all();
  Peer* const peer = find_peer(id);
  if (peer == nullptr) return;
  PeerMessage message;
  if (!decode(bytes, message) || !is_for(message, peer->token)) {
    strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
  } else if (message.type == MessageType::hello) {
    peer->ready_heard = true;
  } else if (message.type == MessageType::goodbye) {
    begin_close(*peer, Code::peer_lost);
  }
}

void VerbsLink::close_peer(PeerId id) {
  Peer* const peer = find_peer(id);
  if (peer == nullptr || peer->closed_here) return;
  peer->closed_here = true;
  if (peer->accepted && peer->state != PeerState::closing) {
    // Nobody is there to tell when it fails: the control connection has ended.
    [[maybe_unused]] const bool said = say(*peer, MessageType::goodbye);
  }
  begin_close(*peer, Code::aborted);
}

void VerbsLink::lose(Peer& peer, Fault fault, int status, std::uint32_t vendor_error) {
  if (peer.state == PeerState::closing) return;
  const FaultInfo& info = about(fault);
  if (!ending_) {
    log(LogLevel::warning, "verbs.peer_lost",
        {{"device", device_.name},
         {"code", to_string(info.code)},
         {"cause", info.cause},
         {"status", status},
         {"vendor_error", vendor_error},
         {"hint", info.hint}});
  }
  begin_close(peer, Code::peer_lost);
}

// Nothing more is posted, and nothing more is taken from the peer; what the device has must be
// flushed before anything is said of its memory.
void VerbsLink::begin_close(Peer& peer, Code code) {
  if (peer.state == PeerState::closing) return;
  if (peer.state != PeerState::connecting) ++unsettled_;
  peer.state = PeerState::closing;
  peer.down_code = code;
  peer.probe_ns = INT64_MAX;
  peer.deadline_ns = context_.clock.now_ns() + config_.close_timeout_ms * kMs;
  peer.owed.clear();
  peer.qp->stop();
  if (peer.qp->ends_silent() && room(peer) > 0) {
    // What was done before the stop is not flushed, and so says nothing: this one is.
    chain_.clear();
    chain_.add({}, {});
    under_way_ += peer.qp->post(chain_).count;
  }
  for (std::uint32_t i = peer.queue.head; i != kNoSlot;) {
    const std::uint32_t next = batches_[i].next;
    BatchSlot& slot = batches_[i];
    if (!slot.all_posted() || slot.requests == 0) fail_batch(peer, slot, code);
    if (slot.requests == 0) finish(peer, i, slot.code);
    i = next;
  }
}

// True: the peer is gone, and so is the reference.
bool VerbsLink::step_closing(Peer& peer, std::int64_t now_ns, EventSink& sink) {
  if (peer.qp) {
    if (peer.qp->under_way() > 0 && now_ns < peer.deadline_ns && !gone_) return false;
    // Destroyed it touches nothing any more, whether or not the device has said so of each request.
    by_tag_.erase(peer.qp->tag());
    peer.qp->abandon([&](const Sent& sent, bool) { settle(peer, sent, false, peer.down_code); });
    peer.qp.reset();
  }
  if (peer.batches_open > 0 || sink.left() == 0) return false;
  sink.next(Event::Kind::peer_down, peer.id).code = peer.down_code;
  rounds_.remove(peer);
  --unsettled_;
  remotes_.erase_all_of(peer.id);
  peers_.erase(peer.id.value);
  return true;
}

// The Link ends: peers would notice by their next probe only.
void VerbsLink::say_goodbye_to_all() {
  ending_ = true;
  drain_completions();
  std::array<Event, 16> last_events;
  for (std::size_t before = arrived_count_ + 1; arrived_count_ < before;) {  // who went before us
    before = arrived_count_;
    EventSink sink{last_events};
    take_messages(sink);
  }
  std::vector<Peer*> told;
  for (Peer* const peer : rounds_.peers()) {
    if (peer->state != PeerState::up || room(*peer) == 0 || message_slots_.full()) continue;
    chain_.clear();
    plan_message(*peer, Sent::Kind::message, {MessageType::goodbye, 0});
    if (post_chain(*peer)) told.push_back(peer);
  }
  const std::int64_t until_ns = context_.clock.now_ns() + kGoodbyeNs;
  while (!told.empty() && context_.clock.now_ns() < until_ns) {
    drain_completions();
    std::erase_if(told, [](Peer* peer) { return peer->qp->under_way() == 0; });
  }
}

}  // namespace kvl::verbs
