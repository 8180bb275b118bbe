// Prefill: how a room ends, and when nothing reads its pages any more.
#include <algorithm>
#include <utility>

#include "kvcache/handoff/prefill.h"

namespace kvl::handoff {

Status PrefillRooms::abort(std::uint64_t room_id, Code code, std::string reason) {
  Room* const room = find_open(room_id);
  if (room == nullptr) return {Code::not_found, "room"};
  if (code == Code::ok) return {Code::invalid_argument, "an abort needs a code"};
  fail(*room, code, std::move(reason));
  return {};
}

void PrefillRooms::on_done(const Peer& peer, const Message& message) {
  Room* const room = find_open(message.room);
  Pair* const pair = room == nullptr ? nullptr : find_pair(*room, message.nonce);
  if (pair == nullptr || pair->peer != peer.handle) return core_.metrics.stale_messages.add();
  if (!pair->finish_sent || !pair->again.empty()) {
    return fail(*room, Code::corrupt, "decode committed what was not finished");
  }
  pair->done = pair->remote_quiet = true;
  if (room->pairs.size() == room->accepts && std::ranges::all_of(room->pairs, &Pair::done)) {
    commit(*room);
  }
}

void PrefillRooms::commit(Room& room) {
  advance(room.state, PrefillState::committed);
  core_.mark(Stage::committed, HandoffSide::prefill, room.room);
  core_.deadlines.erase({room.deadline_ns, HandoffSide::prefill, room.room});
  HandoffEvent event;
  event.kind = HandoffEvent::Kind::committed;
  event.side = HandoffSide::prefill;
  event.room = room.room;
  event.bytes = room.bytes;
  event.elapsed_ns = core_.clock.now_ns() - room.opened_ns;
  Metrics::Side& metrics = core_.metrics.sides[0];
  metrics.committed.add();
  metrics.elapsed_us.add(static_cast<std::uint64_t>(event.elapsed_ns / 1000));
  core_.emit(std::move(event));
  settle(room);
}

// In push the pages are free once our own writes have ended; in pull once the reader's have.
bool PrefillRooms::safe(const Pair& pair) const {
  if (pair.mode == HandoffMode::push) return pair.flying == 0;
  return pair.seq == 0 || pair.remote_quiet;
}

void PrefillRooms::fail(Room& room, Code code, std::string reason) {
  if (ended(room.state)) return;
  advance(room.state, PrefillState::failed);
  core_.mark(Stage::failed, HandoffSide::prefill, room.room, code, reason);
  core_.deadlines.erase({room.deadline_ns, HandoffSide::prefill, room.room});
  core_.note_failed(HandoffSide::prefill, room.room, code, reason);
  for (Pair& pair : room.pairs) {
    for (std::deque<Flight>* const flights : {&pair.flights, &pair.again}) {
      for (Flight& flight : *flights) {
        if (flight.ended || core_.cancel(flight.segment)) continue;
        flight.ended = true;  // had not begun
        --pair.flying;
      }
    }
    if (pair.done) continue;
    pair.told_quiet = quiet(pair);
    core_.send(pair.peer,
               {Part::decode, room.room, pair.nonce, Abort{code, pair.told_quiet, reason}});
  }
  room.unsafe = !std::ranges::all_of(room.pairs, [this](const Pair& p) { return safe(p); });
  Metrics::Side& metrics = core_.metrics.sides[0];
  Metrics::count(metrics.failed, code);
  if (room.unsafe) metrics.unsafe.add();
  HandoffEvent event;
  event.kind = HandoffEvent::Kind::failed;
  event.side = HandoffSide::prefill;
  event.room = room.room;
  event.code = code;
  event.reason = std::move(reason);
  event.pages_safe = !room.unsafe;
  event.elapsed_ns = core_.clock.now_ns() - room.opened_ns;
  core_.remember(Part::prefill, room.room, code);
  core_.emit(std::move(event));
  settle(room);
}

// After the end: says what has become quiet, and lets the room go when it holds nothing.
void PrefillRooms::settle(Room& room) {
  assert(ended(room.state));
  bool flying = false;
  for (Pair& pair : room.pairs) {
    flying = flying || pair.flying > 0;
    if (pair.done || pair.told_quiet || pair.flying > 0) continue;
    pair.told_quiet = true;
    core_.send(pair.peer, {Part::decode, room.room, pair.nonce, Quiet{!pair.own_unproven}});
  }
  const bool all_safe = std::ranges::all_of(room.pairs, [this](const Pair& p) { return safe(p); });
  if (room.unsafe && all_safe) {
    room.unsafe = false;
    core_.mark(Stage::quiet, HandoffSide::prefill, room.room);
    core_.metrics.sides[0].released.add();
    HandoffEvent event;
    event.kind = HandoffEvent::Kind::pages_released;
    event.side = HandoffSide::prefill;
    event.room = room.room;
    core_.emit(std::move(event));
  }
  if (room.unsafe || flying) return;
  if (room.state == PrefillState::committed) core_.remember(Part::prefill, room.room, Code::ok);
  reap_.push_back(room.room);
}

void PrefillRooms::reap() {
  for (const std::uint64_t room : reap_) rooms_.erase(room);
  reap_.clear();
}

void PrefillRooms::on_abort(Peer& peer, const Message& message, const Abort& abort) {
  const auto found = rooms_.find(message.room);
  if (found == rooms_.end()) {
    core_.send(peer, {Part::decode, message.room, message.nonce,
                      Quiet{core_.can_vouch(message.nonce, peer.remote->engine)}});
    // We have just said that nothing of this attempt will be written.
    core_.drop_early(Part::prefill, peer.handle, message.room, message.nonce);
    if (core_.outcome(Part::prefill, message.room) == nullptr) {
      // Decode gave up before prefill came: who opens the room learns it at once.
      (void)core_.keep_early(Part::prefill, peer.handle, message);
    }
    return;
  }
  Room& room = found->second;
  Pair* const pair = find_pair(room, message.nonce);
  if (pair == nullptr) {
    core_.send(peer, {Part::decode, message.room, message.nonce,
                      Quiet{core_.can_vouch(message.nonce, peer.remote->engine)}});
    const bool expected =
        (room.accepts == 0 || room.pairs.size() < room.accepts) &&
        std::ranges::none_of(room.pairs, [&](const Pair& p) { return p.peer == peer.handle; });
    if (!ended(room.state) && expected) fail(room, abort.code, "decode: " + abort.reason);
    return;
  }
  pair->peer = peer.handle;  // it may have come back over another connection
  pair->remote_quiet = pair->remote_quiet || abort.quiet;
  if (!ended(room.state)) return fail(room, abort.code, "decode: " + abort.reason);
  if (pair->flying == 0) pair->told_quiet = false;  // it asks again
  settle(room);
}

void PrefillRooms::on_quiet(const Peer&, const Message& message, const Quiet& quiet) {
  const auto found = rooms_.find(message.room);
  Pair* const pair = found == rooms_.end() ? nullptr : find_pair(found->second, message.nonce);
  if (pair == nullptr || !ended(found->second.state)) return core_.metrics.stale_messages.add();
  pair->remote_quiet = pair->remote_quiet || quiet.quiescent;
  settle(found->second);
}

void PrefillRooms::on_proven(const Core::Attempt& attempt) {
  const auto found = rooms_.find(attempt.room);
  Pair* const pair = found == rooms_.end() ? nullptr : find_pair(found->second, attempt.nonce);
  if (pair == nullptr) {
    const Quiet quiet{core_.can_vouch(attempt.nonce, attempt.engine)};
    return core_.send(attempt.peer, {Part::decode, attempt.room, attempt.nonce, quiet});
  }
  pair->own_unproven = pair->told_quiet = false;
  if (ended(found->second.state)) settle(found->second);
}

// A reader that was away when we ended: ask again whether it is quiet.
void PrefillRooms::on_peer_ready(const Peer& peer) {
  for (auto& [id, room] : rooms_) {
    if (!ended(room.state)) continue;
    for (Pair& pair : room.pairs) {
      if (safe(pair) || pair.remote->engine != peer.remote->engine) continue;
      pair.peer = peer.handle;
      core_.send(pair.peer, {Part::decode, room.room, pair.nonce,
                             Abort{Code::aborted, quiet(pair), "asked again"}});
    }
  }
}

void PrefillRooms::on_peer_down(PeerHandle peer, std::uint64_t epoch, bool fenced) {
  for (auto& [id, room] : rooms_) {
    for (Pair& pair : room.pairs) {
      if (pair.peer != peer || pair.epoch > epoch) continue;
      pair.remote_quiet = pair.remote_quiet || fenced;
      if (pair.done) continue;
      if (ended(room.state)) {
        settle(room);
      } else {
        fail(room, Code::peer_lost, "a decode rank was lost");
      }
      break;
    }
  }
}

void PrefillRooms::expire(std::uint64_t room_id) {
  Room* const room = find_open(room_id);
  if (room == nullptr) return;
  std::string reason = "deadline: ";
  if (room->accepts == 0 || room->pairs.size() < room->accepts) {
    reason += "decode has not accepted";
  } else if (!room->finished) {
    reason += "prefill has not finished";
  } else {
    reason += "decode has not committed";
  }
  fail(*room, Code::timed_out, std::move(reason));
}

}  // namespace kvl::handoff
