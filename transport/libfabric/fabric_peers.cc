// Peers: offers, the hello that proves both address vectors, messages, loss and close.
#include <algorithm>
#include <cstring>

#include "kvl/log.h"
#include "transport/base/crypto.h"
#include "transport/libfabric/fabric_link.h"

namespace kvl::libfabric {
namespace {

constexpr std::int64_t kMs = 1'000'000;
constexpr std::int64_t kHelloEveryNs = 50 * kMs;
constexpr std::int64_t kGoodbyeNs = 50 * kMs;
constexpr std::size_t kForbiddenMax = 4096;

}  // namespace

Result<PeerId> FabricLink::open_peer(PeerRole role) {
  const auto [id, slot] = peers_.insert();
  *slot = std::make_unique<Peer>();
  Peer& peer = **slot;
  peer.id = {id};
  peer.role = role;
  peer.token.peer = id;
  crypto::random(peer.token.secret);
  rounds_.add(peer);
  return peer.id;
}

Result<Blob> FabricLink::offer(PeerId id) {
  Peer* const peer = find_peer(id);
  if (peer == nullptr) return Status{Code::invalid_argument, "stale peer"};
  if (endpoint_->ep() == nullptr) KVL_TRY(endpoint_->make_ep());
  return encode(offer_to(*peer));
}

Status FabricLink::accept(PeerId id, std::span<const std::byte> remote_offer) {
  Peer* const peer = find_peer(id);
  if (peer == nullptr || peer->state != PeerState::opened) {
    return {Code::invalid_argument, "stale peer, or accepted before"};
  }
  if (endpoint_->ep() == nullptr) return {Code::unavailable, "no libfabric endpoint just now"};
  Result<PeerOffer> offer = decode_offer(remote_offer, kAddressBytesMax);
  if (!offer.ok()) return offer.status();
  KVL_TRY(settle(*peer, offer->address));
  peer->remote = offer->token;
  peer->accepted = true;
  peer->state = PeerState::connecting;
  rounds_.all();
  ++unsettled_;
  const std::int64_t now_ns = context_.clock.now_ns();
  peer->deadline_ns = now_ns + config_.connect_timeout_ms * kMs;
  // The passive side speaks when it is spoken to: it dials no address that it was merely told.
  if (peer->address != FI_ADDR_UNSPEC && (peer->role == PeerRole::active || peer->heard)) {
    peer->hello_ns = now_ns;
  }
  // It was told where we were before.
  if (peer->endpoint_told != UINT32_MAX && peer->endpoint_told != endpoints_) say_offer(*peer);
  return {};
}

// Where the peer is from now on. A forbidden address waits for the other side's word.
Status FabricLink::settle(Peer& peer, std::span<const std::byte> address) {
  peer.address_bytes.assign(reinterpret_cast<const char*>(address.data()), address.size());
  const bool forbidden =
      std::find(forbidden_.begin(), forbidden_.end(), peer.address_bytes) != forbidden_.end();
  return forbidden ? Status{} : insert_address(peer);
}

// No operation of an earlier session is under way to that address, nor will there be one.
bool FabricLink::is_clear(const Peer& peer) const {
  const std::vector<Peer*>& peers = rounds_.peers();
  const auto earlier_end = std::find(peers.begin(), peers.end(), &peer);
  return std::none_of(peers.begin(), earlier_end, [&](const Peer* other) {
    const bool writes = other->state == PeerState::up ||
                        (other->state == PeerState::closing && other->operations > 0);
    return writes && other->address_bytes == peer.address_bytes;
  });
}

// It holds for every session at that address that waits: all of them are later than the fence.
void FabricLink::hear_clear(const Peer& from) {
  std::erase(forbidden_, from.address_bytes);
  for (Peer* const peer : rounds_.peers()) {
    if (peer->state != PeerState::connecting || peer->address != FI_ADDR_UNSPEC ||
        peer->address_bytes != from.address_bytes) {
      continue;
    }
    if (!insert_address(*peer).ok()) {
      begin_close(*peer, Code::unavailable);
    } else if (peer->role == PeerRole::active || peer->heard) {
      peer->hello_ns = context_.clock.now_ns();
    }
  }
}

void FabricLink::forbid(const std::string& address) {
  if (forbidden_.size() >= kForbiddenMax) forbidden_.pop_front();
  forbidden_.push_back(address);
}

Status FabricLink::insert_address(Peer& peer) {
  const std::string& key = peer.address_bytes;
  if (key.empty()) return {Code::invalid_argument, "an offer without an address"};
  // One entry for all peers at one address: a provider may answer the same number twice.
  Address& known = addresses_[key];
  if (known.uses == 0) {
    const int count = ::fi_av_insert(endpoint_->av(), key.data(), 1, &known.address, 0, nullptr);
    if (count != 1 || known.address == FI_ADDR_NOTAVAIL) {
      addresses_.erase(key);
      return {Code::invalid_argument, "the provider does not take this address"};
    }
  }
  ++known.uses;
  peer.address = known.address;
  return {};
}

void FabricLink::remove_address(Peer& peer) {
  const auto known = addresses_.find(peer.address_bytes);
  if (std::exchange(peer.address, FI_ADDR_UNSPEC) == FI_ADDR_UNSPEC) return;
  if (--known->second.uses > 0) return;
  [[maybe_unused]] const int result = ::fi_av_remove(endpoint_->av(), &known->second.address, 1, 0);
  addresses_.erase(known);
  if (device_.fence == Fence::av_remove && peer.heard && !peer.released) forbid(peer.address_bytes);
}

void FabricLink::greet(Peer& peer, std::int64_t now_ns) {
  const bool connecting = peer.state == PeerState::connecting;
  if (peer.state != PeerState::up && !connecting) {
    peer.hello_ns = INT64_MAX;
    return;
  }
  if (post_message(peer, MessageType::hello, hello_flags(peer)) != Posted::yes) return;
  peer.hello_ns = connecting ? now_ns + kHelloEveryNs : INT64_MAX;
}

void FabricLink::hear_hello(Peer& peer, std::uint64_t flags) {
  rounds_.all();
  peer.heard = true;
  const bool reachable = peer.address != FI_ADDR_UNSPEC;  // else nobody has heard us yet
  if (peer.state == PeerState::connecting && (flags & kHelloHeard) != 0 && reachable) come_up(peer);
  if (reachable && (flags & kHelloUp) == 0) peer.hello_ns = 0;  // at once
}

void FabricLink::come_up(Peer& peer) {
  peer.state = PeerState::up;
  rounds_.all();
  peer.deadline_ns = peer.hello_ns = INT64_MAX;
  peer.probe_ns = context_.clock.now_ns() + config_.probe_ms * kMs;
  --unsettled_;
  grant(peer);
  peers_up_.add();
}

// A fabric has no connections: only who is spoken to is known to live.
void FabricLink::probe(Peer& peer, std::int64_t now_ns) {
  const std::int64_t every_ns = config_.probe_ms * kMs;
  Posted posted = Posted::yes;
  if (!peer.active && peer.operations == 0) posted = post_message(peer, MessageType::nothing, 0);
  if (posted == Posted::failed) return;
  if (posted == Posted::yes) {
    peer.active = false;
    peer.probe_ns = now_ns + every_ns;
  } else if (now_ns - peer.probe_ns > 2 * every_ns) {
    // Some providers never say that a peer is gone, they only take nothing more for it.
    lose(peer, Fault::unresponsive, FI_EAGAIN, 0);
  }
}

// False: there is no room for its event yet.
bool FabricLink::take_message(const PeerMessage& message, EventSink& sink) {
  Peer* const peer = find_peer({message.to_peer});
  if (peer == nullptr || !is_for(message, peer->token)) {
    strangers_[static_cast<std::size_t>(Stranger::unknown_token)].add();
    return true;
  }
  switch (message.type) {
    case MessageType::hello:
      if (peer->state != PeerState::closing) hear_hello(*peer, message.value);
      return true;
    case MessageType::note:
      // Nothing orders messages: who sends notes is up, whether or not its hello came first.
      if (peer->state == PeerState::connecting && peer->address != FI_ADDR_UNSPEC) {
        peer->heard = true;
        come_up(*peer);
      }
      if (peer->state == PeerState::opened || peer->state == PeerState::connecting) return true;
      if (!peer->up_announced) announce_up(*peer, sink);
      if (message.value != 0) return take_counted_note(*peer, message);
      if (sink.left() == 0) return false;
      show_note(peer->id, message.note, message.note_bytes, sink);
      notes_received_.add();
      ++peer->messages_taken;
      return true;
    case MessageType::forget:
      ++peer->messages_taken;
      remotes_.forget(peer->id, message.value);
      return true;
    case MessageType::goodbye:
      ++peer->messages_taken;
      begin_close(*peer, Code::peer_lost);
      return true;
    case MessageType::grant:
    case MessageType::uncount:
    case MessageType::freed:
      ++peer->messages_taken;
      hear_counts(*peer, message);
      return true;
    case MessageType::nothing:
    case MessageType::clear:
    case MessageType::quiet:
      return true;
  }
  return true;
}

void FabricLink::on_control(PeerId id, std::span<const std::byte> bytes) {
  Peer* const peer = find_peer(id);
  if (peer == nullptr) return;
  rounds_.all();
  if (const Result<PeerOffer> offer = decode_offer(bytes, kAddressBytesMax); offer.ok()) {
    return hear_offer(*peer, *offer);
  }
  PeerMessage message;
  const bool known = decode(bytes, message) && is_for(message, peer->token);
  if (known && message.type == MessageType::goodbye) {
    peer->released = peer->released || message.value == kGoodbyeReleased;
    begin_close(*peer, Code::peer_lost);
  } else if (known && message.type == MessageType::clear) {
    if (peer->state == PeerState::connecting) hear_clear(*peer);
  } else if (known && message.type == MessageType::quiet) {
    hear_quiet(*peer, message.value);
  } else {
    strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
  }
}

void FabricLink::close_peer(PeerId id) {
  Peer* const peer = find_peer(id);
  if (peer == nullptr || peer->closed_here) return;
  peer->closed_here = true;
  if (peer->state != PeerState::closing) say(*peer, MessageType::goodbye, 0);
  begin_close(*peer, Code::aborted);
}

// Over the control channel: it outlives what the fabric has lost.
void FabricLink::say(const Peer& peer, MessageType type, std::uint64_t value) {
  if (!peer.accepted) return;
  const PeerMessage message = message_to(peer.remote, type, value);
  // Nobody is there to tell when it fails: the control connection has ended.
  [[maybe_unused]] const Status status =
      context_.control.send(peer.id, std::as_bytes(std::span(&message, 1)));
}

void FabricLink::lose(Peer& peer, Fault fault, int error, int provider_error) {
  if (peer.state == PeerState::closing) return;
  const FaultInfo& info = about(fault);
  log(LogLevel::warning, "libfabric.peer_lost",
      {{"device", device_.name},
       {"code", to_string(info.code)},
       {"cause", info.cause},
       {"error", error},
       {"provider_error", provider_error},
       {"hint", info.hint}});
  begin_close(peer, Code::peer_lost);
}

// Nothing more is posted; what the provider has must end before anything is said of its memory.
void FabricLink::begin_close(Peer& peer, Code code) {
  if (peer.state == PeerState::closing) return;
  if (peer.state != PeerState::connecting) ++unsettled_;
  peer.state = PeerState::closing;
  peer.down_code = code;
  peer.hello_ns = peer.probe_ns = INT64_MAX;
  const std::int64_t now_ns = context_.clock.now_ns();
  peer.deadline_ns = now_ns + config_.close_timeout_ms * kMs;
  peer.give_up_ns = now_ns + config_.give_up_ms * kMs;
  peer.owed.clear();
  for (std::uint32_t i = peer.queue.head; i != kNoSlot;) {
    const std::uint32_t next = batches_[i].next;
    BatchSlot& slot = batches_[i];
    if (!slot.all_posted() || slot.operations == 0) fail_batch(peer, slot, code);
    if (slot.operations == 0) finish(peer, i, slot.code);
    i = next;
  }
}

// True: the peer is gone, and so is the reference.
bool FabricLink::step_closing(Peer& peer, std::int64_t now_ns, EventSink& sink) {
  // The memory of a batch is the provider's until it says otherwise, or until it is made to.
  give_up_ = give_up_ || (!peer.queue.empty() && now_ns >= peer.give_up_ns);
  if (peer.batches_open > 0 || sink.left() == 0) return false;
  if (peer.operations > 0 && now_ns < peer.deadline_ns) return false;
  if (!peer.said_released) say(peer, MessageType::goodbye, kGoodbyeReleased);
  peer.said_released = true;
  if (!peer.fenced) {
    peer.fenced = fence(peer, now_ns);
    return false;
  }
  // A sender has been told that its note arrived: what came before the fence is shown.
  if ((!drained_ || still_counts(peer)) && now_ns < peer.deadline_ns) return false;
  sink.next(Event::Kind::peer_down, peer.id).code = peer.down_code;
  take_back_grant(peer);
  rounds_.remove(peer);
  --unsettled_;
  remotes_.erase_all_of(peer.id);
  peers_.erase(peer.id.value);
  return true;
}

// What shuts a peer out is that its address is gone. Where another peer has the same one, only its
// own word says that it has let go; without that the others have to go, too. Whom we never heard
// was never told that it may write.
bool FabricLink::fence(Peer& peer, std::int64_t now_ns) {
  const auto known = addresses_.find(peer.address_bytes);
  const bool alone = known == addresses_.end() || known->second.uses == 1;
  if (device_.fence == Fence::av_remove && peer.heard && !peer.released && !alone) {
    if (now_ns < peer.deadline_ns) return false;
    for (Peer* const other : rounds_.peers()) {
      if (other == &peer || other->address_bytes != peer.address_bytes) continue;
      lose(*other, Fault::unresponsive, FI_ETIMEDOUT, 0);
      remove_address(*other);
    }
  }
  remove_address(peer);
  return true;
}

// The Link ends: peers would not notice, since a fabric has no connections.
void FabricLink::say_goodbye_to_all() {
  const std::int64_t until_ns = context_.clock.now_ns() + kGoodbyeNs;
  // First hear who has gone before us.
  std::array<Event, 16> last_events;
  for (std::size_t i = 0; i <= endpoint_->rx_depth() / last_events.size(); ++i) {
    EventSink sink{last_events};
    drain_completions();
    take_messages(sink);
    post_receives();
  }
  std::size_t left = 0;
  std::vector<Peer*> silent;
  for (Peer* const peer : rounds_.peers()) {
    if (peer->state == PeerState::up) silent.push_back(peer);
  }
  do {
    std::erase_if(silent, [this](Peer* peer) {
      return peer->state != PeerState::up ||
             post_message(*peer, MessageType::goodbye, 0) != Posted::again;
    });
    drain_completions();
    left = silent.size() + under_way_;
  } while (left > 0 && context_.clock.now_ns() < until_ns);
}

}  // namespace kvl::libfabric
