// The decode ranks of a request commit together or not at all: rank 0 leads.
//
// A member votes when everything is there; having voted it waits for the lead's word. The lead says
// commit when all have voted, and commits itself when all have said that they did. So the lead's
// commit implies everybody's, and nobody commits unless all voted.
#include <algorithm>

#include "kvcache/handoff/decode.h"

namespace kvl::handoff {

void DecodeRooms::send_join(Room& room, Peer& lead) {
  room.joined = true;
  core_.send(lead, {Part::lead, room.open.room, room.nonce,
                    Join{room.open.group_rank, room.open.group_size}});
  if (room.state == DecodeState::complete) vote(room);
}

void DecodeRooms::vote(Room& room) {
  if (leads(room)) return decide(room);
  if (room.joined) core_.send(room.open.lead, {Part::lead, room.open.room, room.nonce, Vote{}});
}

void DecodeRooms::decide(Room& room) {
  if (room.state != DecodeState::complete) return;
  if (room.open.group_size == 1) return commit(room);
  const auto others = std::span(room.members).subspan(1);
  if (!std::ranges::all_of(others, &Member::voted)) return;
  advance(room.state, DecodeState::deciding);
  for (const Member& member : others) {
    core_.send(member.peer, {Part::member, room.open.room, member.nonce, Commit{}});
  }
}

void DecodeRooms::on_join(Peer& peer, const Message& message, const Join& join) {
  const auto refuse = [&](Code code, const char* reason) {
    core_.send(peer, {Part::member, message.room, message.nonce, Abort{code, true, reason}});
  };
  const auto found = rooms_.find(message.room);
  if (found == rooms_.end()) {
    if (const Code* outcome = core_.outcome(Part::decode, message.room)) {
      return refuse(*outcome == Code::ok ? Code::invalid_argument : *outcome, "the room has ended");
    }
    if (!core_.keep_early(Part::lead, peer.handle, message)) {
      refuse(Code::exhausted, "too many rooms wait to be opened");
    }
    return;
  }
  Room& room = found->second;
  if (ended(room.state)) return refuse(Code::aborted, "the room has failed");
  if (!leads(room) || join.rank == 0 || join.size != room.open.group_size ||
      room.members[join.rank].joined) {
    return refuse(Code::invalid_argument, "no such place in the group");
  }
  room.members[join.rank] = {peer.handle, message.nonce, true, false, false};
}

DecodeRooms::Member* DecodeRooms::find_member(Room& room, const Peer& peer,
                                              const Message& message) {
  const auto found = std::ranges::find_if(room.members, [&](const Member& m) {
    return m.joined && m.nonce == message.nonce && m.peer == peer.handle;
  });
  return found == room.members.end() ? nullptr : &*found;
}

void DecodeRooms::on_vote(Peer& peer, const Message& message) {
  if (!rooms_.contains(message.room)) {
    // Of a join that was kept; a vote without one is answered by its join's refusal.
    if (core_.outcome(Part::decode, message.room) == nullptr) {
      (void)core_.keep_early(Part::lead, peer.handle, message);
    }
    return;
  }
  Room* const room = find_open(message.room);
  Member* const member = room == nullptr ? nullptr : find_member(*room, peer, message);
  if (member == nullptr) return core_.metrics.stale_messages.add();
  member->voted = true;
  decide(*room);
}

void DecodeRooms::on_committed(Peer& peer, const Message& message) {
  Room* const room = find_open(message.room);
  Member* const member = room == nullptr ? nullptr : find_member(*room, peer, message);
  if (member == nullptr) return core_.metrics.stale_messages.add();
  if (room->state != DecodeState::deciding) {
    return fail(*room, Code::corrupt, "a decode rank committed before it was told to");
  }
  member->committed = true;
  const auto others = std::span(room->members).subspan(1);
  if (std::ranges::all_of(others, &Member::committed)) commit(*room);
}

void DecodeRooms::on_member_abort(Peer& peer, const Message& message, const Abort& abort) {
  if (!rooms_.contains(message.room)) {
    if (core_.outcome(Part::decode, message.room) == nullptr) {
      (void)core_.keep_early(Part::lead, peer.handle, message);
    }
    return;
  }
  Room* const room = find_open(message.room);
  Member* const member = room == nullptr ? nullptr : find_member(*room, peer, message);
  if (member == nullptr) return core_.metrics.stale_messages.add();
  fail(*room, abort.code, "a decode rank: " + abort.reason);
}

void DecodeRooms::on_commit(Peer& peer, const Message& message) {
  Room* const room = find_open(message.room);
  if (room == nullptr || room->nonce != message.nonce || leads(*room) ||
      room->open.lead != peer.handle) {
    return core_.metrics.stale_messages.add();
  }
  if (room->state != DecodeState::complete) {
    return fail(*room, Code::corrupt, "the lead commits what we did not vote for");
  }
  core_.send(peer, {Part::lead, room->open.room, room->nonce, Committed{}});
  commit(*room);
}

void DecodeRooms::on_lead_abort(Peer& peer, const Message& message, const Abort& abort) {
  Room* const room = find_open(message.room);
  if (room == nullptr || room->nonce != message.nonce || leads(*room) ||
      room->open.lead != peer.handle) {
    return core_.metrics.stale_messages.add();
  }
  fail(*room, abort.code, "the lead: " + abort.reason);
}

void DecodeRooms::abort_group(Room& room, Code code, const std::string& reason) {
  if (!leads(room)) {
    core_.send(room.open.lead, {Part::lead, room.open.room, room.nonce, Abort{code, true, reason}});
    return;
  }
  for (const Member& member : room.members) {
    if (!member.joined) continue;
    core_.send(member.peer,
               {Part::member, room.open.room, member.nonce, Abort{code, true, reason}});
  }
}

}  // namespace kvl::handoff
