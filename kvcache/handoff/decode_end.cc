// Decode: how a room ends, and when nothing can land in its pages any more.
#include <algorithm>
#include <utility>

#include "kvcache/handoff/decode.h"

namespace kvl::handoff {

Status DecodeRooms::abort(std::uint64_t room_id, Code code, std::string reason) {
  Room* const room = find_open(room_id);
  if (room == nullptr) return {Code::not_found, "room"};
  if (code == Code::ok) return {Code::invalid_argument, "an abort needs a code"};
  fail(*room, code, std::move(reason));
  return {};
}

void DecodeRooms::commit(Room& room) {
  advance(room.state, DecodeState::committed);
  core_.mark(Stage::committed, HandoffSide::decode, room.open.room);
  core_.deadlines.erase({room.deadline_ns, HandoffSide::decode, room.open.room});
  HandoffEvent event;
  event.kind = HandoffEvent::Kind::committed;
  event.side = HandoffSide::decode;
  event.room = room.open.room;
  event.bytes = room.bytes;
  event.elapsed_ns = core_.clock.now_ns() - room.opened_ns;
  for (Source& source : room.sources) {
    core_.send(source.peer, {Part::prefill, room.open.room, room.nonce, Done{}});
    event.metadata.push_back(std::move(source.metadata));
  }
  Metrics::Side& metrics = core_.metrics.sides[1];
  metrics.committed.add();
  metrics.elapsed_us.add(static_cast<std::uint64_t>(event.elapsed_ns / 1000));
  core_.remember(Part::decode, room.open.room, Code::ok);
  core_.emit(std::move(event));
  reap_.push_back(room.open.room);
}

// In push a source may write until it says that it is quiet; in pull only our own reads write.
bool DecodeRooms::safe(const Room& room, const Source& source) const {
  if (source.stage == Source::Stage::unsent) return true;
  if (room.open.mode == HandoffMode::push) return source.remote_quiet;
  return source.reading.empty() && (!source.own_unproven || source.fenced);
}

void DecodeRooms::fail(Room& room, Code code, std::string reason) {
  if (ended(room.state)) return;
  advance(room.state, DecodeState::failed);
  core_.mark(Stage::failed, HandoffSide::decode, room.open.room, code, reason);
  core_.deadlines.erase({room.deadline_ns, HandoffSide::decode, room.open.room});
  core_.note_failed(HandoffSide::decode, room.open.room, code, reason);
  for (Source& source : room.sources) {
    std::erase_if(source.reading, [this](std::uint64_t id) { return !core_.cancel(id); });
    source.told_quiet = quiet(source);
    core_.send(source.peer,
               {Part::prefill, room.open.room, room.nonce, Abort{code, source.told_quiet, reason}});
  }
  abort_group(room, code, reason);
  room.unsafe = !std::ranges::all_of(room.sources, [&](const Source& s) { return safe(room, s); });
  Metrics::Side& metrics = core_.metrics.sides[1];
  Metrics::count(metrics.failed, code);
  if (room.unsafe) metrics.unsafe.add();
  HandoffEvent event;
  event.kind = HandoffEvent::Kind::failed;
  event.side = HandoffSide::decode;
  event.room = room.open.room;
  event.code = code;
  event.reason = std::move(reason);
  event.pages_safe = !room.unsafe;
  event.elapsed_ns = core_.clock.now_ns() - room.opened_ns;
  core_.remember(Part::decode, room.open.room, code);
  core_.emit(std::move(event));
  settle(room);
}

// After the end: says what has become quiet, and lets the room go when nothing can land in it.
void DecodeRooms::settle(Room& room) {
  assert(ended(room.state));
  bool reading = false;
  for (Source& source : room.sources) {
    reading = reading || !source.reading.empty();
    if (source.told_quiet || !source.reading.empty()) continue;
    source.told_quiet = true;
    core_.send(source.peer,
               {Part::prefill, room.open.room, room.nonce, Quiet{!source.own_unproven}});
  }
  const bool all_safe =
      std::ranges::all_of(room.sources, [&](const Source& s) { return safe(room, s); });
  if (room.unsafe && all_safe) {
    room.unsafe = false;
    core_.mark(Stage::quiet, HandoffSide::decode, room.open.room);
    core_.metrics.sides[1].released.add();
    HandoffEvent event;
    event.kind = HandoffEvent::Kind::pages_released;
    event.side = HandoffSide::decode;
    event.room = room.open.room;
    core_.emit(std::move(event));
  }
  if (!room.unsafe && !reading) reap_.push_back(room.open.room);
}

void DecodeRooms::reap() {
  for (const std::uint64_t room : reap_) rooms_.erase(room);
  reap_.clear();
}

void DecodeRooms::on_abort(Peer& peer, const Message& message, const Abort& abort) {
  const auto found = rooms_.find(message.room);
  if (found == rooms_.end() || found->second.nonce != message.nonce) {
    // Late; its sender may be waiting for our word in pull.
    core_.send(peer, {Part::prefill, message.room, message.nonce,
                      Quiet{core_.can_vouch(message.nonce, peer.remote->engine)}});
    return core_.metrics.stale_messages.add();
  }
  Room& room = found->second;
  const auto source = std::ranges::find(room.sources, peer.handle, &Source::peer);
  if (source == room.sources.end()) return core_.metrics.stale_messages.add();
  source->remote_quiet = source->remote_quiet || abort.quiet;
  if (!ended(room.state)) return fail(room, abort.code, "prefill: " + abort.reason);
  settle(room);
}

void DecodeRooms::on_quiet(const Peer& peer, const Message& message, const Quiet& quiet) {
  const auto found = rooms_.find(message.room);
  if (found == rooms_.end() || found->second.nonce != message.nonce ||
      !ended(found->second.state)) {
    return core_.metrics.stale_messages.add();
  }
  Room& room = found->second;
  const auto source = std::ranges::find(room.sources, peer.handle, &Source::peer);
  if (source == room.sources.end()) return core_.metrics.stale_messages.add();
  source->remote_quiet = source->remote_quiet || quiet.quiescent;
  settle(room);
}

void DecodeRooms::on_proven(const Core::Attempt& attempt) {
  const auto found = rooms_.find(attempt.room);
  if (found == rooms_.end() || found->second.nonce != attempt.nonce) {
    const Quiet quiet{core_.can_vouch(attempt.nonce, attempt.engine)};
    return core_.send(attempt.peer, {Part::prefill, attempt.room, attempt.nonce, quiet});
  }
  for (Source& source : found->second.sources) {
    if (source.remote == nullptr || source.remote->engine != attempt.engine) continue;
    source.own_unproven = source.told_quiet = false;
  }
  if (ended(found->second.state)) settle(found->second);
}

void DecodeRooms::on_peer_refused(const Peer& peer) {
  for (auto& [id, room] : rooms_) {
    if (ended(room.state)) continue;
    const bool named =
        (!leads(room) && room.open.lead == peer.handle) ||
        std::ranges::any_of(room.sources, [&](const Source& s) { return s.peer == peer.handle; });
    if (named) fail(room, peer.refusal_code, "peer refused: " + peer.refusal);
  }
}

void DecodeRooms::on_peer_down(PeerHandle peer, std::uint64_t epoch, bool fenced, bool now) {
  for (auto& [id, room] : rooms_) {
    bool lost = false;
    for (Source& source : room.sources) {
      if (source.peer != peer || source.epoch > epoch) continue;
      if (source.stage == Source::Stage::unsent && !now) continue;
      source.fenced = source.fenced || fenced;
      source.remote_quiet = source.remote_quiet || fenced;
      lost = true;
    }
    if (ended(room.state)) {
      if (lost) settle(room);
      continue;
    }
    if (lost) {
      fail(room, Code::peer_lost, "a prefill rank was lost");
    } else if (!now) {
      continue;
    } else if (!leads(room) && room.open.lead == peer) {
      fail(room, Code::peer_lost, "the lead of the decode ranks was lost");
    } else if (std::ranges::any_of(room.members, [&](const Member& m) {
                 return m.joined && m.peer == peer && !m.committed;
               })) {
      fail(room, Code::peer_lost, "a decode rank of the group was lost");
    }
  }
}

void DecodeRooms::expire(std::uint64_t room_id) {
  Room* const room = find_open(room_id);
  if (room == nullptr) return;
  const char* reason = "deadline: prefill has not sent everything";
  if (room->state == DecodeState::opened) reason = "deadline: prefill has not offered the room";
  if (room->state >= DecodeState::complete) reason = "deadline: the decode ranks have not agreed";
  fail(*room, Code::timed_out, reason);
}

}  // namespace kvl::handoff
