// Peers of an endpoint: the greeting (hello, verdict) and sending.
#include <algorithm>

#include "kvcache/handoff/core.h"
#include "kvl/failure.h"
#include "kvl/log.h"

namespace kvl::handoff {
namespace {

// Of messages that a full engine has put off; beyond it the peer is given up.
constexpr std::size_t kOutboxMax = 4096;
constexpr std::string_view kNoRole = "no role of the two ranks fits together";

}  // namespace

Peer* Core::find_peer(PeerHandle handle) {
  const auto found = peers.find(handle.value);
  return found == peers.end() ? nullptr : &found->second;
}

void Core::send(Peer& peer, const Message& message) {
  if (peer.up) send_bytes(peer, encode(message));
}

void Core::send(PeerHandle handle, const Message& message) {
  if (Peer* const peer = find_peer(handle); peer != nullptr && peer->ready()) send(*peer, message);
}

void Core::send_bytes(Peer& peer, std::vector<std::byte> bytes) {
  if (peer.outbox.empty()) {
    // Any other failure means that the peer is going down: its event follows.
    if (engine.send(peer.handle, bytes).code() != Code::exhausted) return;
  }
  if (peer.outbox.size() >= kOutboxMax) {
    Metrics::count(metrics.peers_refused, Code::exhausted);
    log(LogLevel::warning, "handoff.outbox_full",
        {{"peer", peer_name(peer.handle)},
         {"code", kvl::to_string(Code::exhausted)},
         {"hint", "the peer does not take its messages and is let go: see what its engine does"}});
    (void)engine.disconnect(peer.handle);
    unsent -= peer.outbox.size();
    peer.outbox.clear();
    peer.refusal_code = Code::exhausted;
    peer.refusal = "its messages could not be sent";
    return;
  }
  peer.outbox.push_back(std::move(bytes));
  ++unsent;
}

void Core::flush_outboxes() {
  if (unsent == 0) return;
  for (auto& [value, peer] : peers) {
    while (!peer.outbox.empty()) {
      if (engine.send(peer.handle, peer.outbox.front()).code() == Code::exhausted) break;
      peer.outbox.pop_front();
      --unsent;
    }
  }
}

void Core::greet(Peer& peer) {
  Hello hello{engine.id(), rank.prefill, rank.decode, rank.model, rank.layout.encode(), {}};
  for (const HandoffRegion& region : rank.regions) {
    hello.regions.push_back({region.handle, region.bytes});
  }
  send(peer, {Part::prefill, 0, 0, std::move(hello)});
}

void Core::on_up(const EngineEvent& event) {
  Peer& peer = peers[event.peer.value];
  peer.handle = event.peer;
  peer.epoch = event.epoch;
  peer.up = true;
  if (!peer.verdict_due) {  // what is left of a connection that never came up
    peer.remote.reset();
    peer.approved = false;
    peer.refusal.clear();
  }
  greet(peer);
  if (peer.verdict_due) {
    peer.verdict_due = false;
    send(peer, {Part::prefill, 0, 0, peer.verdict});
  }
}

bool Core::on_down(const EngineEvent& event) {
  Peer* const peer = find_peer(event.peer);
  if (peer != nullptr && peer->up && event.epoch < peer->epoch) return false;
  forget_early(event.peer);
  if (peer == nullptr) return true;
  peer->up = peer->approved = peer->verdict_due = false;
  peer->remote.reset();  // segments in flight hold what they use
  peer->refusal.clear();
  unsent -= peer->outbox.size();
  peer->outbox.clear();
  // Fenced: nothing of ours that could still be on its way matters to it any more.
  if (event.fenced) peers.erase(event.peer.value);
  return true;
}

Status Core::check(const Hello& hello, std::shared_ptr<const RemoteRank>& remote,
                   std::string& reason) const {
  const auto refuse = [&reason](Code code, const char* context, std::string text) {
    reason = std::move(text);
    return Status{code, context};
  };
  if (hello.model != rank.model) {
    return refuse(Code::invalid_argument, "model",
                  "models differ: " + rank.model + " here, " + hello.model + " there");
  }
  if (!(rank.prefill && hello.decode) && !(rank.decode && hello.prefill) &&
      !(rank.decode && hello.decode)) {
    return refuse(Code::unsupported, "roles", std::string(kNoRole));
  }
  Result<PageLayout> layout = PageLayout::decode(hello.layout);
  if (!layout.ok()) {
    return refuse(layout.code(), "layout", "layout: " + layout.status().to_string());
  }
  if (const Status status = compatible(rank.layout, *layout); !status.ok()) {
    return refuse(status.code(), "layout", status.to_string());
  }
  if (hello.regions.size() < layout->region_count()) {
    return refuse(Code::invalid_argument, "regions", "fewer regions than the layout uses");
  }
  auto rank_there = std::make_shared<RemoteRank>();
  for (std::uint32_t i = 0; i < hello.regions.size(); ++i) {
    if (hello.regions[i].bytes < layout->region_bytes(i)) {
      return refuse(Code::invalid_argument, "regions", "a region is smaller than the layout says");
    }
    rank_there->handles.push_back(hello.regions[i].handle);
  }
  rank_there->engine = hello.engine;
  rank_there->layout = std::move(*layout);
  rank_there->prefill = hello.prefill;
  rank_there->decode = hello.decode;
  remote = std::move(rank_there);
  return {};
}

bool Core::on_hello(Peer& peer, const Hello& hello) {
  if (!peer.up) {  // the first word of a new connection
    peer.approved = false;
    peer.refusal.clear();
  }
  const bool was_ready = peer.ready(), was_refused = peer.refused();
  std::string reason;
  std::shared_ptr<const RemoteRank> remote;
  const Status status = check(hello, remote, reason);
  if (was_ready && !status.ok()) {  // it cannot take back what its rooms rely on
    note_misplaced(peer.handle, Code::invalid_argument,
                   "a second hello that contradicts the first");
    return false;
  }
  peer.remote = std::move(remote);
  if (!status.ok()) {
    peer.refusal_code = status.code();
    peer.refusal = reason;
  }
  peer.verdict = {status.code(), reason.substr(0, kHandoffReasonBytesMax)};
  // The Engine may show us the peer's message before its own peer_up: answer then.
  peer.verdict_due = !peer.up;
  if (peer.up) send(peer, {Part::prefill, 0, 0, peer.verdict});
  return settle_peer(peer, was_ready, was_refused);
}

bool Core::on_verdict(Peer& peer, const Verdict& verdict) {
  const bool was_ready = peer.ready(), was_refused = peer.refused();
  if (peer.approved) {
    if (verdict.code != Code::ok) {
      note_misplaced(peer.handle, Code::invalid_argument,
                     "a verdict that takes back an earlier one");
    }
  } else if (verdict.code == Code::ok) {
    peer.approved = true;
  } else if (peer.refusal.empty()) {
    peer.refusal_code = verdict.code;
    peer.refusal = "refused by the peer: " + verdict.reason;
  }
  return settle_peer(peer, was_ready, was_refused);
}

bool Core::refuse(Peer& peer, Code code, std::string why) {
  const bool was_ready = peer.ready(), was_refused = peer.refused();
  if (!was_refused) {
    peer.refusal_code = code;
    peer.refusal = std::move(why);
  }
  return settle_peer(peer, was_ready, was_refused);
}

bool Core::settle_peer(Peer& peer, bool was_ready, bool was_refused) {
  if (peer.refused() && !was_refused) {
    Metrics::count(metrics.peers_refused, peer.refusal_code);
    // Two prefill ranks have nothing to say to each other, and nothing is wrong.
    log(peer.refusal == kNoRole ? LogLevel::info : LogLevel::warning, "handoff.peer_refused",
        {{"peer", peer_name(peer.handle)},
         {"code", kvl::to_string(peer.refusal_code)},
         {"why", peer.refusal},
         {"hint", remedy(peer.refusal_code)}});
    HandoffEvent event;
    event.kind = HandoffEvent::Kind::peer_refused;
    event.peer = peer.handle;
    event.code = peer.refusal_code;
    event.reason = peer.refusal;
    emit(std::move(event));
    return true;
  }
  if (was_ready || !peer.ready()) return false;
  metrics.peers_ready.add();
  HandoffEvent event;
  event.kind = HandoffEvent::Kind::peer_ready;
  event.peer = peer.handle;
  emit(std::move(event));
  return true;
}

}  // namespace kvl::handoff
