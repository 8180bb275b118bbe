// Some operations never complete, and closing the endpoint is the only way to have their memory
// back. The Link gets another one, and so another address; peers that live go with it:
//
//   we                                        the peer
//   posts nothing more, its operations end
//   quiet (messages sent)            ->       posts nothing more, its operations end, ours are
//   taken
//                                    <-       quiet (messages sent)
//   takes them, closes, opens
//   offer (the new address)          ->       puts it in the place of the old one
//   hello                           <->       as at the beginning
//
// Nothing is under way between the two when the endpoint goes, so nothing is lost, and nobody above
// hears of it but the one whose operations did not end. All but the hello goes over the control
// channel, since what hangs may fill the send queue. Who is not quiet in time is lost with it.
#include <algorithm>
#include <utility>

#include "kvl/log.h"
#include "transport/base/crypto.h"
#include "transport/libfabric/fabric_link.h"

namespace kvl::libfabric {
namespace {

constexpr std::int64_t kMs = 1'000'000;

}  // namespace

void FabricLink::step_move(std::int64_t now_ns) {
  rounds_.all();
  if (move_until_ns_ == INT64_MAX) {
    move_until_ns_ = now_ns + config_.close_timeout_ms * kMs;
    for (Peer* const peer : rounds_.peers()) {
      if (peer->state == PeerState::up) peer->held = true;
    }
  }
  const std::vector<Peer*>& peers = rounds_.peers();
  const bool all_quiet = std::all_of(peers.begin(), peers.end(), [](const Peer* peer) {
    return !peer->held || (peer->said_quiet && peer->heard_quiet && peer->quiet());
  });
  if (!all_quiet && now_ns < move_until_ns_) return;
  replace_endpoint();
  give_up_ = false;
  move_until_ns_ = INT64_MAX;
}

// Says that it is quiet, once.
void FabricLink::step_held(Peer& peer) {
  if (peer.said_quiet || !peer.quiet()) return;
  say(peer, MessageType::quiet, peer.messages_sent);
  peer.said_quiet = true;
}

void FabricLink::hear_quiet(Peer& peer, std::uint64_t messages) {
  if (peer.state != PeerState::connecting && peer.state != PeerState::up) return;
  peer.held = peer.heard_quiet = true;
  peer.messages_due = messages;
  peer.deadline_ns = context_.clock.now_ns() + config_.connect_timeout_ms * kMs;
}

// The peer has another address.
void FabricLink::hear_offer(Peer& peer, const PeerOffer& offer) {
  if (!peer.accepted || offer.token.peer != peer.remote.peer ||
      !crypto::equal(offer.token.secret, peer.remote.secret)) {
    strangers_[static_cast<std::size_t>(Stranger::malformed)].add();
    return;
  }
  if (peer.state == PeerState::closing) return;
  if (peer.state == PeerState::up && !(peer.held && peer.quiet())) {
    // What is under way to the old one ends badly.
    return begin_close(peer, Code::peer_lost);
  }
  peer.heard = false;  // it is quiet: nothing need be forbidden
  remove_address(peer);
  ++peer.moves;
  if (!settle(peer, offer.address).ok()) return begin_close(peer, Code::unavailable);
  const bool speaking = peer.hello_ns != INT64_MAX;  // we have moved, too
  rejoin(peer);
  if (speaking) peer.hello_ns = context_.clock.now_ns();
}

// Back to the hello, as when the session began; nobody is told.
void FabricLink::rejoin(Peer& peer) {
  if (peer.state == PeerState::up) {
    ++unsettled_;
    peers_moved_.add();
  }
  peer.state = PeerState::connecting;
  peer.held = peer.said_quiet = peer.heard_quiet = false;
  peer.messages_due = 0;
  peer.deadline_ns = context_.clock.now_ns() + config_.connect_timeout_ms * kMs;
  peer.hello_ns = peer.probe_ns = INT64_MAX;  // who has moved speaks first
}

PeerOffer FabricLink::offer_to(Peer& peer) const {
  peer.endpoint_told = endpoints_;
  PeerOffer offer;
  offer.token = peer.token;
  offer.address = endpoint_->address();
  return offer;
}

void FabricLink::say_offer(Peer& peer) {
  // Nobody is there to tell when it fails: the control connection has ended.
  [[maybe_unused]] const Status status = context_.control.send(peer.id, encode(offer_to(peer)));
}

void FabricLink::replace_endpoint() {
  std::vector<Peer*> kept;
  for (Peer* const peer : rounds_.peers()) {
    const bool goes_on = peer->state == PeerState::up
                             ? peer->said_quiet && peer->heard_quiet && peer->quiet()
                             : peer->state == PeerState::connecting;
    if (goes_on) kept.push_back(peer);
    if (!goes_on && peer->state == PeerState::up) begin_close(*peer, Code::peer_lost);
  }
  log(LogLevel::warning, "libfabric.endpoint_replaced",
      {{"device", device_.name},
       {"code", to_string(Code::peer_lost)},
       {"operations", under_way_},
       {"peers_kept", kept.size()},
       {"hint",
        "operations to a lost peer did not end in libfabric.give_up_ms: see the provider's "
        "log (FI_LOG_LEVEL=warn)"}});
  for (Peer* const peer : kept) {
    peer->heard = false;  // … of this endpoint: it ends with it, and nothing need be forbidden
    ++peer->moves;
  }
  for (Peer* const peer : rounds_.peers()) remove_address(*peer);
  endpoint_->close_ep();
  end_everything();
  endpoints_replaced_.add();
  ++endpoints_;
  // Without one offer() tries again: descriptors or memory may be short just now.
  const bool opened = endpoint_->make_ep().ok();
  if (opened) post_receives();
  for (Peer* const peer : kept) {
    const bool there = opened && insert_address(*peer).ok();
    if (!there) {
      begin_close(*peer, Code::peer_lost);
      continue;
    }
    rejoin(*peer);
    peer->hello_ns = context_.clock.now_ns();
    say_offer(*peer);
  }
}

// What has completed is in the queue; everything else was stopped with its endpoint.
void FabricLink::end_everything() {
  do {
    drain_completions();
  } while (!drained_ && under_way_ > 0);
  fi_cq_err_entry stopped{};
  stopped.err = FI_ECANCELED;
  for (std::uint32_t i = 0; i < operations_.size(); ++i) {
    if (operations_[i].used) complete(operations_[i], &stopped);
  }
  for (std::uint32_t i = 0; i < endpoint_->rx_depth(); ++i) {
    if (std::exchange(receives_[i].used, false)) to_post_.push_back(i);
  }
  doorbell_for_ = 0;
}

}  // namespace kvl::libfabric
