// How lanes and peers end, and the proof that nothing of them can land any more.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kvl/failure.h"
#include "kvl/log.h"
#include "transport/tcp/tcp_link.h"
#include "transport/tcp/tcp_socket.h"

namespace kvl::tcp {
namespace {

constexpr std::int64_t kMs = 1'000'000;

}  // namespace

TcpLink::~TcpLink() {
  // Closing the sockets first: whatever waits for us ends soonest, and nothing can land any more.
  peers_.for_each([&](std::uint64_t, Peer& peer) {
    if (peer.up && !peer.closing) send_control(peer, ControlKind::bye, 0, 0);
  });
  lanes_.for_each([](std::uint64_t, std::unique_ptr<Lane>& lane) { lane->close(); });
  while (core_.copies > 0) {
    context_.memory_ops.poll();
    lanes_.for_each([](std::uint64_t, std::unique_ptr<Lane>& lane) { lane->settle(); });
  }
  // Lanes give their buffers back to the core, which goes last.
  lanes_.for_each([](std::uint64_t, std::unique_ptr<Lane>& lane) { lane.reset(); });
}

void TcpLink::send_control(const Peer& peer, ControlKind kind, std::uint32_t lane,
                           std::uint32_t incarnation) {
  const ControlMessage message{kind, lane, incarnation, kWireVersion};
  const Status status =
      context_.control.send(PeerId{peer.id}, std::as_bytes(std::span(&message, 1)));
  if (!status.ok()) {
    // Without a control channel the engine is about to give the peer up; deadlines cover the rest.
    log(LogLevel::debug, "tcp.control", {{"why", status.to_string()}});
  }
}

// Nothing passes any more; what is under way is for another rail.
void TcpLink::carrier_lost() {
  std::vector<std::uint64_t> ids;
  peers_.for_each([&](std::uint64_t id, const Peer& peer) {
    if (peer.up && !peer.closing) ids.push_back(id);
  });
  if (ids.empty()) return;
  log(LogLevel::warning, "tcp.carrier_lost",
      {{"device", device_.name},
       {"peers", ids.size()},
       {"code", to_string(Code::peer_lost)},
       {"hint", "the interface is down: see its cable and its switch, and ip link"}});
  for (const std::uint64_t id : ids) {
    end_peer(*peers_.find(id), Code::peer_lost, Code::peer_lost, true);
  }
}

void TcpLink::drop_lane(Lane& lane) {
  std::unique_ptr<Lane> gone = std::move(*lanes_.find(lane.id()));
  lanes_.erase(gone->id());
}

// A lane that is not open yet, and will not be.
void TcpLink::fail_greeting(Lane& lane, LaneFault fault, int error) {
  const bool dialed = lane.dialed;
  const std::uint32_t index = lane.index;
  Peer* const peer = peers_.find(lane.peer);
  if (!dialed) {
    const LaneFaultInfo& info = about(fault);
    core_.counters.greetings_refused[static_cast<std::size_t>(fault)].add();
    log(info.hostile ? LogLevel::warning : LogLevel::info, "tcp.greeting_refused",
        {{"from", remote_text(lane.fd())},
         {"code", to_string(info.code)},
         {"cause", info.cause},
         {"hint", info.hint}});
    drop_lane(lane);
    --strangers_;
    return;
  }
  drop_lane(lane);
  if (peer == nullptr || peer->closing) return;
  tell_dial_failed(peer->addresses[peer->lanes[index].candidate % peer->addresses.size()], fault,
                   error);
  dial_failed(*peer, index, fault == LaneFault::refused);
}

// Not a warning: it is tried again, elsewhere too, and who gives up says so.
void TcpLink::tell_dial_failed(const SocketAddress& to, LaneFault fault, int error) {
  const LaneFaultInfo& info = about(fault);
  core_.counters.dials_failed[static_cast<std::size_t>(fault)].add();
  log(LogLevel::info, "tcp.dial_failed",
      {{"to", to.text()},
       {"code", to_string(info.code)},
       {"cause", info.cause},
       {"why", error == 0 ? "" : std::strerror(error)},
       {"hint", info.hint}});
}

// Once for each lane: the counter says how many there are.
void TcpLink::tell_refused_run(Lane& lane) {
  if (std::exchange(lane.refusal_told, true)) return;
  log(LogLevel::warning, "tcp.run_refused",
      {{"from", remote_text(lane.fd())},
       {"code", to_string(Code::permission)},
       {"hint",
        "a peer names memory that it may not touch: it was deregistered while a transfer used it, "
        "or the peer is not what it says; see the peer's log"}});
}

// An open lane is dead. `tell`: the peer may not know, and its end must close before our writes on
// it can be declared over.
void TcpLink::lane_lost(Lane& lane, const Status& why, bool tell) {
  Peer& peer = *peers_.find(lane.peer);
  LaneSlot& slot = peer.lanes[lane.index];
  Counters::count(core_.counters.lanes_lost, why.code());
  const bool corrupt = why.code() == Code::corrupt;
  if (corrupt) core_.counters.frames_malformed.add();
  // A lane that only broke is dialed again, and a peer without any is told of by the engine.
  log(corrupt ? LogLevel::warning : LogLevel::info, "tcp.lane_lost",
      {{"peer", remote_text(lane.fd())},
       {"lane", lane.index},
       {"incarnation", lane.incarnation},
       {"code", to_string(why.code())},
       {"why", why.to_string()},
       {"hint", corrupt
                    ? "the peer, or somebody between, sends what no peer sends: run one release "
                      "on both sides; see docs/security.md"
                    : remedy(why.code())}});
  lane.close();
  slot.lane = nullptr;
  --peer.open_lanes;
  for (BatchList* const list : {&lane.writes(), &lane.reads(), &lane.waiting()}) {
    for (OutBatch* b = list->last; b != nullptr;) {
      OutBatch* const previous = b->previous;
      if (!b->begun || b->writes()) {
        BatchList::remove(*b);
        *b->load -= b->total_bytes;
        b->load = nullptr;
        // What has not begun goes elsewhere; what has is over when the peer's end is closed.
        b->begun ? peer.fenced.push(*b) : peer.fifo.push_front(*b);
      }
      b = previous;
    }
  }
  if (tell) {
    send_control(peer, ControlKind::fence, lane.index, lane.incarnation);
    if (!peer.fenced.empty()) {
      peer.fence_deadline_ns = now() + config_.connect_timeout_ms * kMs;
      set_timer(peer.fence_deadline_ns);
    }
  }
  if (peer.role == PeerRole::active) {
    slot.redial_ns = now();
    set_timer(slot.redial_ns);
  }
  if (peer.open_lanes == 0) {
    peer.deadline_ns = now() + config_.reconnect_timeout_ms * kMs;
    set_timer(peer.deadline_ns);
  }
  dispatch(peer);
  lane.settle() ? lane_settled(lane) : settling_.push_back(lane.id());
}

void TcpLink::settle_lanes() {
  for (std::size_t i = 0; i < settling_.size();) {
    Lane& lane = **lanes_.find(settling_[i]);
    if (!lane.settle()) {
      ++i;
      continue;
    }
    settling_.erase(settling_.begin() + static_cast<std::ptrdiff_t>(i));
    lane_settled(lane);
  }
}

// No copy of the closed lane touches memory any more.
void TcpLink::lane_settled(Lane& lane) {
  Peer& peer = *peers_.find(lane.peer);
  const Code code = peer.closing ? peer.batches_code : Code::unavailable;
  for (BatchList* const list : {&lane.writes(), &lane.reads(), &lane.waiting()}) {
    while (!list->empty()) core_.finish(*list->first, code);
  }
  if (lane.fence_answer_due && !peer.closing) {
    send_control(peer, ControlKind::fenced, lane.index, lane.incarnation);
  }
  drop_lane(lane);
  --peer.lanes_alive;
  if (peer.closing) finish_peer(peer);
}

// Nothing of these incarnations can land any more, there.
void TcpLink::fenced(Peer& peer, std::uint32_t lane, std::uint32_t incarnation) {
  for (OutBatch* b = peer.fenced.first; b != nullptr;) {
    OutBatch* const next = b->next;
    if (b->lane == lane && b->incarnation <= incarnation) core_.finish(*b, Code::unavailable);
    b = next;
  }
  if (peer.fenced.empty()) peer.fence_deadline_ns = INT64_MAX;
}

void TcpLink::on_control(PeerId id, std::span<const std::byte> bytes) {
  Peer* const peer = peers_.find(id.value);
  if (peer == nullptr || peer->closing || bytes.size() != sizeof(ControlMessage)) return;
  const auto message = read_wire<ControlMessage>(bytes.data());
  if (message.version != kWireVersion) return;
  if (message.kind == ControlKind::bye) {
    end_peer(*peer, Code::peer_lost, Code::peer_lost, false);
    return;
  }
  if (message.lane >= peer->lanes.size()) return;
  if (message.kind == ControlKind::fenced) {
    fenced(*peer, message.lane, message.incarnation);
    return;
  }
  if (message.kind != ControlKind::fence) return;
  LaneSlot& slot = peer->lanes[message.lane];
  slot.fenced = std::max(slot.fenced, message.incarnation);
  if (slot.lane != nullptr && slot.lane->incarnation <= message.incarnation) {
    if (slot.lane->phase == Lane::Phase::open) {
      lane_lost(*slot.lane, {Code::peer_lost, "the peer has closed this lane"}, false);
    } else {
      fail_greeting(*slot.lane, LaneFault::closed);
    }
  }
  // The peer closed its end before it wrote to us.
  fenced(*peer, message.lane, message.incarnation);
  bool settled = true;
  for (const std::uint64_t lane_id : settling_) {
    Lane& lane = **lanes_.find(lane_id);
    if (lane.peer != peer->id || lane.index != message.lane) continue;
    if (lane.incarnation > message.incarnation) continue;
    lane.fence_answer_due = true;
    settled = false;
  }
  if (settled) send_control(*peer, ControlKind::fenced, message.lane, message.incarnation);
}

void TcpLink::close_peer(PeerId id) {
  Peer* const peer = peers_.find(id.value);
  if (peer != nullptr && !peer->closing) end_peer(*peer, Code::aborted, Code::aborted, true);
}

void TcpLink::end_peer(Peer& peer, Code peer_code, Code batches_code, bool tell) {
  if (peer.closing) return;
  peer.closing = true;
  peer.closing_code = peer_code;
  peer.batches_code = batches_code;
  peer.deadline_ns = peer.fence_deadline_ns = INT64_MAX;
  if (tell && peer.accepted) send_control(peer, ControlKind::bye, 0, 0);
  ++peer.lanes_alive;  // so that finish_peer() comes once, below or when the last lane has settled
  const std::uint64_t id = peer.id;
  lanes_.for_each([&](std::uint64_t, std::unique_ptr<Lane>& lane) {
    if (lane->peer != id || lane->phase == Lane::Phase::closed) return;
    if (lane->phase != Lane::Phase::open) {
      if (!lane->dialed) --strangers_;
      drop_lane(*lane);
      return;
    }
    lane->close();
    lane->settle() ? lane_settled(*lane) : settling_.push_back(lane->id());
  });
  --peer.lanes_alive;
  finish_peer(peer);
}

void TcpLink::finish_peer(Peer& peer) {
  if (peer.lanes_alive > 0) return;
  for (BatchList* const list : {&peer.fifo, &peer.fenced}) {
    while (!list->empty()) core_.finish(*list->first, peer.batches_code);
  }
  for (OutBatch* b = waiting_token_.first; b != nullptr;) {
    OutBatch* const next = b->next;
    if (b->batch.peer.value == peer.id) core_.finish(*b, peer.batches_code);
    b = next;
  }
  core_.remotes.for_each([&](std::uint64_t id, const LinkCore::Remote& remote) {
    if (remote.peer == peer.id) core_.remotes.erase(id);
  });
  core_.memory.revoke(peer.id);
  Event event;
  event.kind = Event::Kind::peer_down;
  event.code = peer.closing_code;
  event.peer = PeerId{peer.id};
  core_.push_event(event);
  peers_.erase(peer.id);
}

void TcpLink::run_timers() {
  const std::int64_t at = now();
  timer_ns_ = INT64_MAX;
  if (accept_again_ns_ <= at) {
    accept_again_ns_ = INT64_MAX;
    pause_accepting(false);
  }
  set_timer(accept_again_ns_);
  lanes_.for_each([&](std::uint64_t, std::unique_ptr<Lane>& lane) {
    if (lane->deadline_ns > at || lane->phase == Lane::Phase::open ||
        lane->phase == Lane::Phase::closed) {
      return;
    }
    fail_greeting(*lane, LaneFault::timed_out);
  });
  peers_.for_each([&](std::uint64_t, Peer& peer) {
    if (peer.closing) return;
    if (peer.deadline_ns <= at || peer.fence_deadline_ns <= at) {
      const Code code = peer.up ? Code::peer_lost : Code::timed_out;
      end_peer(peer, code, code, true);
      return;
    }
    for (std::uint32_t i = 0; i < peer.lanes.size(); ++i) {
      if (peer.lanes[i].redial_ns <= at) dial_lane(peer, i);
      if (peer.closing) return;
    }
  });
  lanes_.for_each([&](std::uint64_t, const std::unique_ptr<Lane>& lane) {
    if (lane->phase != Lane::Phase::open && lane->phase != Lane::Phase::closed) {
      set_timer(lane->deadline_ns);
    }
  });
  peers_.for_each([&](std::uint64_t, const Peer& peer) {
    set_timer(std::min(peer.deadline_ns, peer.fence_deadline_ns));
    for (const LaneSlot& slot : peer.lanes) set_timer(slot.redial_ns);
  });
}

}  // namespace kvl::tcp
