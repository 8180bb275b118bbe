// Peers: offers, the hello that proves both ways, what UCX chose, loss and close.
#include <algorithm>

#include "kvl/log.h"
#include "transport/base/crypto.h"
#include "transport/ucx/ucx_link.h"

namespace kvl::ucx {
namespace {

constexpr std::int64_t kMs = 1'000'000;
constexpr std::int64_t kHelloEveryNs = 50 * kMs;
constexpr std::int64_t kGoodbyeNs = 50 * kMs;
constexpr std::int64_t kEndNs = 500 * kMs;
constexpr std::int64_t kProbesMissed = 3;

}  // namespace

Result<PeerId> UcxLink::open_peer(PeerRole role) {
  const auto [id, slot] = peers_.insert();
  *slot = std::make_unique<Peer>();
  Peer& peer = **slot;
  peer.id = {id};
  peer.role = role;
  peer.token.peer = id;
  crypto::random(peer.token.secret);
  order_.push_back(&peer);
  return peer.id;
}

Result<Blob> UcxLink::offer(PeerId id) {
  const Peer* const peer = find_peer(id);
  if (peer == nullptr) return Status{Code::invalid_argument, "stale peer"};
  PeerOffer offer;
  offer.token = peer->token;
  offer.address = worker_->address();
  return encode(offer);
}

Status UcxLink::accept(PeerId id, std::span<const std::byte> remote_offer) {
  Peer* const peer = find_peer(id);
  if (peer == nullptr || peer->state != PeerState::opened) {
    return {Code::invalid_argument, "stale peer, or accepted before"};
  }
  Result<PeerOffer> offer = decode_offer(remote_offer, kAddressBytesMax);
  if (!offer.ok()) return offer.status();
  if (offer->address.empty()) return {Code::invalid_argument, "an offer without an address"};
  peer->address = std::move(offer->address);
  peer->remote = offer->token;
  peer->accepted = true;
  peer->state = PeerState::connecting;
  ++unsettled_;
  const std::int64_t now_ns = context_.clock.now_ns();
  peer->deadline_ns = now_ns + config_.connect_timeout_ms * kMs;
  // The passive side speaks when it is spoken to: it dials no address that it was merely told.
  if (peer->role == PeerRole::active || peer->heard) peer->hello_ns = now_ns;
  return {};
}

// From inside UCX: only remembered.
void UcxLink::on_failure(void* peer, ucp_ep_h, ucs_status_t status) {
  static_cast<Peer*>(peer)->failure = status;
}

// True: it has an endpoint. Else it is lost.
bool UcxLink::connect(Peer& peer) {
  if (peer.ep != nullptr) return true;
  const ucs_status_t status = worker_->connect(peer.address, on_failure, &peer, &peer.ep);
  if (status == UCS_OK) return true;
  peer.ep = nullptr;
  lose(peer, classify(status), status);
  return false;
}

void UcxLink::greet(Peer& peer, std::int64_t now_ns) {
  const bool connecting = peer.state == PeerState::connecting;
  if (peer.state != PeerState::up && !connecting) {
    peer.hello_ns = INT64_MAX;
    return;
  }
  if (!connect(peer)) return;
  if (post_message(peer, MessageType::hello, hello_flags(peer)) != Posted::yes) return;
  peer.hello_ns = connecting ? now_ns + kHelloEveryNs : INT64_MAX;
}

void UcxLink::hear_hello(Peer& peer, std::uint64_t flags) {
  peer.heard = true;
  if (peer.state == PeerState::connecting && (flags & kHelloHeard) != 0) come_up(peer);
  if (peer.accepted && peer.state != PeerState::closing && (flags & kHelloUp) == 0) {
    peer.hello_ns = 0;  // at once
  }
}

void UcxLink::come_up(Peer& peer) {
  if (!connect(peer)) return;
  const Lanes lanes = lanes_of(api(), peer.ep);
  log(LogLevel::info, "ucx.chosen",
      {{"device", found_.device.name},
       {"chosen", lanes.pages},
       {"emulated", lanes.emulated ? "yes" : "no"}});
  peer.chosen = lanes.pages;
  if (!meets(found_.wanted, lanes)) {
    lose(peer, Fault::wrong_transport, UCS_ERR_UNSUPPORTED);
    return;
  }
  peer.state = PeerState::up;
  peer.deadline_ns = peer.hello_ns = INT64_MAX;
  peer.probe_ns = context_.clock.now_ns() + config_.probe_ms * kMs;
  --unsettled_;
  peers_up_.add({lanes.emulated ? "yes" : "no"}, {lanes.pages});
}

// UCX hears of a dead process; of a dead host only who speaks to it.
void UcxLink::probe(Peer& peer, std::int64_t now_ns) {
  const std::int64_t every_ns = config_.probe_ms * kMs;
  peer.probe_ns = now_ns + every_ns;
  if (peer.probed_ns != INT64_MAX) {
    if (now_ns - peer.probed_ns > kProbesMissed * every_ns) {
      lose(peer, Fault::unresponsive, UCS_ERR_TIMED_OUT);
    }
    return;
  }
  const bool quiet = !peer.active && peer.operations == 0;
  peer.active = false;
  if (!quiet || post_message(peer, MessageType::nothing, 0) != Posted::yes) return;
  // The message may be out already, and is of use nonetheless.
  if (peer.operations > 0) peer.probed_ns = now_ns;
  if (!copies_ && post_flush(peer, kNoSlot) == Posted::yes && peer.operations > 0) {
    peer.probed_ns = now_ns;
  }
}

void UcxLink::on_control(PeerId id, std::span<const std::byte> bytes) {
  Peer* const peer = find_peer(id);
  PeerMessage message;
  if (peer == nullptr || !decode(bytes, message) || message.type != MessageType::goodbye ||
      message.to_peer != peer->token.peer ||
      !crypto::equal(peer->token.secret, message.to_secret)) {
    if (peer != nullptr) strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
    return;
  }
  begin_close(*peer, Code::peer_lost);
}

void UcxLink::close_peer(PeerId id) {
  Peer* const peer = find_peer(id);
  if (peer == nullptr || peer->closed_here) return;
  peer->closed_here = true;
  if (peer->accepted && peer->state != PeerState::closing) {
    PeerMessage message;
    message.type = MessageType::goodbye;
    message.to_peer = peer->remote.peer;
    message.to_secret = peer->remote.secret;
    // Nobody is there to tell when it fails: the control connection has ended.
    [[maybe_unused]] const Status status =
        context_.control.send(id, std::as_bytes(std::span(&message, 1)));
  }
  begin_close(*peer, Code::aborted);
}

void UcxLink::lose(Peer& peer, Fault fault, ucs_status_t status) {
  if (peer.state == PeerState::closing) return;
  const FaultInfo& info = about(fault);
  faults_[static_cast<std::size_t>(fault)].add();
  log(LogLevel::warning, "ucx.peer_lost",
      {{"device", found_.device.name},
       {"code", to_string(info.code)},
       {"cause", info.cause},
       {"error", static_cast<int>(status)},
       {"chosen", peer.chosen},
       {"hint", info.hint}});
  peer.force = true;
  begin_close(peer, fault == Fault::wrong_transport ? info.code : Code::peer_lost);
}

// Nothing more is posted; what UCX has must end before anything is said of its memory.
void UcxLink::begin_close(Peer& peer, Code code) {
  if (peer.state == PeerState::closing) return;
  if (peer.state != PeerState::connecting) ++unsettled_;
  peer.state = PeerState::closing;
  peer.down_code = code;
  peer.hello_ns = peer.probe_ns = INT64_MAX;
  peer.deadline_ns = context_.clock.now_ns() + config_.close_timeout_ms * kMs;
  // Who copies for a closed peer drops its runs: nothing need arrive any more.
  peer.force = peer.force || copies_;
  peer.owed.clear();
  for (std::uint32_t i = peer.queue.head; i != kNoSlot;) {
    const std::uint32_t next = batches_[i].next;
    BatchSlot& slot = batches_[i];
    if (!slot.all_posted() || slot.quiet()) fail_batch(peer, slot, code);
    if (slot.quiet()) finish(peer, i, slot.code);
    i = next;
  }
}

// The endpoint has no operations any more. `arrived`: they were flushed.
void UcxLink::finish_all(Peer& peer, bool arrived) {
  while (!peer.queue.empty()) {
    const std::uint32_t i = peer.queue.head;
    BatchSlot& slot = batches_[i];
    if (!arrived && slot.unflushed) fail_batch(peer, slot, peer.down_code);
    if (arrived) slot.bytes_done = std::max(slot.bytes_done, slot.bytes_moved);
    finish(peer, i, slot.ending ? slot.code : Code::ok);
  }
}

// Flushed, so that nothing of ours is on its way to the peer any more, or by force once that takes
// too long or is in vain. True: the endpoint is gone, and UCX has none of our memory.
bool UcxLink::step_endpoint(Peer& peer, std::int64_t now_ns) {
  if (peer.ep == nullptr) return peer.operations == 0;
  if (!peer.closing_ep) {
    if (!peer.force && !peer.last_flush) {
      // Before it is posted: one that is done at once changes no state of this peer's.
      peer.last_flush = post_flush(peer, kNoSlot) == Posted::yes;
    }
    const bool arrived = !peer.force && peer.last_flush && peer.operations == 0;
    if (!peer.force && !arrived) {
      if (now_ns < peer.deadline_ns) return false;
      forced_.add();
    }
    if (arrived) finish_all(peer, true);
    peer.closing = worker_->close(peer.ep);
    peer.closing_ep = true;
    peer.deadline_ns = INT64_MAX;
  }
  drain_completions();
  if (!worker_->closed(peer.closing)) return false;
  peer.ep = nullptr;
  give_up_answers(peer);
  return peer.operations == 0;
}

void UcxLink::step_closing(Peer& peer, std::int64_t now_ns, EventSink& sink) {
  // Batches have no deadline here: their memory is UCX's until it says otherwise.
  if (!step_endpoint(peer, now_ns)) return;
  finish_all(peer, false);
  deliver_batches(sink);
  if (peer.batches_open > 0 || sink.left() == 0) return;
  sink.next(Event::Kind::peer_down, peer.id).code = peer.down_code;
  std::erase(order_, &peer);
  --unsettled_;
  remotes_.erase_all_of(peer.id);
  peers_.erase(peer.id.value);
}

// The Link ends. Over some transports peers would not notice at once.
void UcxLink::say_goodbye_to_all() {
  std::vector<Peer*> silent;
  for (Peer* const peer : order_) {
    if (peer->state == PeerState::up) silent.push_back(peer);
  }
  const std::int64_t until_ns = context_.clock.now_ns() + kGoodbyeNs;
  while (!silent.empty() && context_.clock.now_ns() < until_ns) {
    std::erase_if(silent, [this](Peer* peer) {
      return peer->state != PeerState::up ||
             post_message(*peer, MessageType::goodbye, 0) != Posted::again;
    });
    api().worker_progress(worker_->worker());
    drain_completions();
  }
}

UcxLink::~UcxLink() {
  say_goodbye_to_all();
  const std::int64_t until_ns = context_.clock.now_ns() + kEndNs;
  for (Peer* const peer : order_) {
    begin_close(*peer, Code::aborted);
    peer->force = true;
  }
  const auto left = [this, until_ns](Peer* peer) { return !step_endpoint(*peer, until_ns); };
  while (std::ranges::count_if(order_, left) > 0 && context_.clock.now_ns() < until_ns) {
    api().worker_progress(worker_->worker());
  }
  for (Peer* const peer : order_) {
    if (peer->ep == nullptr) {
      remotes_.erase_all_of(peer->id);
      continue;
    }
    // UCX may still look at its keys: they are left.
    remotes_.for_each_of(peer->id,
                         [](RemoteKey& imported) { std::ignore = imported.key.release(); });
  }
  worker_->shut();
}

}  // namespace kvl::ucx
