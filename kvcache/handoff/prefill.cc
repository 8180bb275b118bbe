// Prefill: from ready layers and accepted destinations to segments on their way, and to the end.
#include "kvcache/handoff/prefill.h"

#include <algorithm>
#include <utility>

#include "kvl/log.h"

namespace kvl::handoff {

PrefillRooms::Room* PrefillRooms::find_open(std::uint64_t room) {
  const auto found = rooms_.find(room);
  return found == rooms_.end() || ended(found->second.state) ? nullptr : &found->second;
}

PrefillRooms::Pair* PrefillRooms::find_pair(Room& room, std::uint64_t nonce) {
  const auto found = std::ranges::find(room.pairs, nonce, &Pair::nonce);
  return found == room.pairs.end() ? nullptr : &*found;
}

bool PrefillRooms::holds(std::uint32_t layer) const {
  return std::ranges::any_of(core_.rank.layout.groups(), [layer](const LayoutGroup& group) {
    return group.layers.contains(layer);
  });
}

Status PrefillRooms::open(const PrefillOpen& open) {
  if (!core_.rank.prefill) return {Code::invalid_argument, "this rank does not prefill"};
  if (open.tokens == 0 || open.tokens > kTokensMax) return {Code::invalid_argument, "tokens"};
  if (rooms_.contains(open.room)) return {Code::invalid_argument, "the room is open"};
  core_.forget_outcome(Part::prefill, open.room);
  Room& room = rooms_[open.room];
  room.room = open.room;
  room.tokens = open.tokens;
  room.opened_ns = core_.clock.now_ns();
  room.deadline_ns = core_.deadline_from(open.deadline_ms);
  room.pages.resize(core_.rank.layout.groups().size());
  room.ready.assign(span_.count, 0);
  core_.deadlines.emplace(room.deadline_ns, HandoffSide::prefill, open.room);
  core_.metrics.sides[0].opened.add();
  for (const Core::Early& early : core_.take_early(Part::prefill, open.room)) {
    Peer* const peer = core_.find_peer(early.peer);
    if (peer == nullptr || !peer->ready()) continue;
    if (const auto* accept = std::get_if<Accept>(&early.message.body)) {
      on_accept(*peer, early.message, *accept);
    } else if (const auto* abort = std::get_if<Abort>(&early.message.body)) {
      on_abort(*peer, early.message, *abort);
    }
  }
  return {};
}

Status PrefillRooms::add_pages(std::uint64_t room_id, std::uint32_t group,
                               std::span<const std::uint32_t> ids) {
  Room* const room = find_open(room_id);
  if (room == nullptr) return {Code::not_found, "room"};
  if (group >= room->pages.size()) return {Code::invalid_argument, "group"};
  const std::uint32_t count = core_.rank.layout.groups()[group].page_count;
  if (std::ranges::any_of(ids, [count](std::uint32_t id) { return id >= count; })) {
    return {Code::invalid_argument, "page id out of range"};
  }
  if (room->page_total + ids.size() > kRoomPagesMax) {
    return {Code::invalid_argument, "more pages than a handoff can name"};
  }
  room->page_total += ids.size();
  auto& pages = room->pages[group];
  pages.insert(pages.end(), ids.begin(), ids.end());
  return {};
}

Status PrefillRooms::ready(std::uint64_t room_id, Range layers, std::uint64_t tokens) {
  Room* const room = find_open(room_id);
  if (room == nullptr) return {Code::not_found, "room"};
  if (tokens == 0 || tokens > room->tokens || room->finished) {
    return {Code::invalid_argument, "more tokens than the room has, or after finish"};
  }
  const auto groups = core_.rank.layout.groups();
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (intersect(groups[g].layers, layers).count == 0) continue;
    KVL_TRY(check_pages(groups[g], room->pages[g], 0, tokens));
  }
  const Range mine = intersect(layers, span_);
  for (std::uint32_t layer = mine.first; layer < mine.end(); ++layer) {
    if (room->ready[layer - span_.first] > tokens) {
      return {Code::invalid_argument, "fewer tokens ready than before"};
    }
  }
  for (std::uint32_t layer = mine.first; layer < mine.end(); ++layer) {
    if (holds(layer)) room->ready[layer - span_.first] = tokens;
  }
  for (Pair& pair : room->pairs) {
    if (const Status status = pump(*room, pair); !status.ok()) {
      fail(*room, status.code(), status.to_string());
      break;  // reported by its event, as any failure after a good call
    }
  }
  return {};
}

Status PrefillRooms::finish(std::uint64_t room_id, std::span<const std::byte> metadata) {
  Room* const room = find_open(room_id);
  if (room == nullptr) return {Code::not_found, "room"};
  if (metadata.size() > static_cast<std::size_t>(core_.config.metadata_bytes_max)) {
    return {Code::invalid_argument, "metadata too long"};
  }
  if (room->finished) return {Code::invalid_argument, "finished before"};
  for (std::uint32_t layer = span_.first; layer < span_.end(); ++layer) {
    if (holds(layer) && room->ready[layer - span_.first] != room->tokens) {
      return {Code::invalid_argument, "a layer is not ready for all tokens"};
    }
  }
  room->finished = true;
  room->metadata.assign(metadata.begin(), metadata.end());
  for (Pair& pair : room->pairs) maybe_finish(*room, pair);
  return {};
}

Status PrefillRooms::abort(std::uint64_t room_id, Code code, std::string reason) {
  Room* const room = find_open(room_id);
  if (room == nullptr) return {Code::not_found, "room"};
  if (code == Code::ok) return {Code::invalid_argument, "an abort needs a code"};
  fail(*room, code, std::move(reason));
  return {};
}

Status PrefillRooms::check_accept(const Room& room, const Accept& accept, const Peer& peer) const {
  if (accept.tokens != room.tokens) {
    return {Code::invalid_argument, "prefill and decode disagree on the number of tokens"};
  }
  if (room.accepts != 0 && room.accepts != accept.accepts) {
    return {Code::invalid_argument, "decode ranks disagree on how many they are"};
  }
  if (stronger(core_.crc, accept.crc).mode != CrcMode::off && !core_.cpu_readable) {
    return {Code::unsupported, "checksums of memory that the CPU cannot read"};
  }
  const auto groups = peer.remote->layout.groups();
  if (accept.groups.size() != groups.size()) {
    return {Code::invalid_argument, "page lists do not match the layout's groups"};
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const Accept::Group& pages = accept.groups[g];
    if (pages.first_token > accept.skip_tokens) {
      return {Code::invalid_argument, "pages begin after skip_tokens"};
    }
    KVL_TRY(check_pages(groups[g], pages.pages, pages.first_token, accept.tokens));
  }
  return {};
}

void PrefillRooms::on_accept(Peer& peer, const Message& message, const Accept& accept) {
  const auto refuse = [&](Code code, std::string reason) {
    core_.send(peer,
               {Part::decode, message.room, message.nonce, Abort{code, true, std::move(reason)}});
  };
  const auto found = rooms_.find(message.room);
  if (found == rooms_.end()) {
    if (const Code* outcome = core_.outcome(Part::prefill, message.room)) {
      return refuse(*outcome == Code::ok ? Code::invalid_argument : *outcome, "the room has ended");
    }
    if (!core_.keep_early(Part::prefill, peer.handle, message)) {
      refuse(Code::exhausted, "too many rooms wait to be opened");
    }
    return;
  }
  Room& room = found->second;
  if (ended(room.state)) return refuse(Code::aborted, "the room has failed");
  if (find_pair(room, message.nonce) != nullptr) return core_.metrics.bad_messages.add();
  const bool known =
      std::ranges::any_of(room.pairs, [&peer](const Pair& p) { return p.peer == peer.handle; });
  if (known || (room.accepts != 0 && room.pairs.size() >= room.accepts)) {
    // Not one of those that were to come: the room goes on without it.
    return refuse(Code::invalid_argument, "the room has its decode ranks already");
  }
  if (const Status status = check_accept(room, accept, peer); !status.ok()) {
    refuse(status.code(), status.context());
    return fail(room, status.code(), std::string("decode's accept: ") + status.context());
  }
  room.accepts = accept.accepts;
  Pair& pair = room.pairs.emplace_back();
  pair.peer = peer.handle;
  pair.epoch = peer.epoch;
  pair.nonce = message.nonce;
  pair.remote = peer.remote;
  pair.mode = accept.mode;
  pair.crc = stronger(core_.crc, accept.crc);
  pair.skip_tokens = accept.skip_tokens;
  pair.pages = accept.groups;
  pair.takes.assign(span_.count, false);
  pair.sent.assign(span_.count, accept.skip_tokens);
  pair.told.assign(room.pages.size(), 0);
  for (std::size_t g = 0; g < room.pages.size(); ++g) {
    const Range layers = layers_between(core_.rank.layout, pair.remote->layout, g);
    for (std::uint32_t l = layers.first; l < layers.end(); ++l) pair.takes[l - span_.first] = true;
  }
  core_.send(peer, {Part::decode, room.room, pair.nonce, Offer{pair.crc}});
  if (room.pairs.size() == room.accepts) {
    HandoffEvent event;
    event.kind = HandoffEvent::Kind::accepted;
    event.side = HandoffSide::prefill;
    event.room = room.room;
    event.skip_tokens = std::ranges::min(room.pairs, {}, &Pair::skip_tokens).skip_tokens;
    core_.emit(std::move(event));
    if (room.state == PrefillState::opened) advance(room.state, PrefillState::accepted);
  }
  if (const Status status = pump(room, pair); !status.ok()) {
    return fail(room, status.code(), status.to_string());
  }
  maybe_finish(room, pair);
}

// Sends what is ready, accepted and not sent yet.
Status PrefillRooms::pump(Room& room, Pair& pair) {
  const std::uint64_t layer_bytes = token_layer_bytes(core_.rank.layout);
  for (std::uint32_t i = 0; i < span_.count;) {
    const std::uint64_t begin = pair.sent[i], end = room.ready[i];
    if (!pair.takes[i] || end <= begin) {
      ++i;
      continue;
    }
    const std::uint64_t most =
        static_cast<std::uint64_t>(core_.config.segment_bytes) / (layer_bytes * (end - begin)) + 1;
    std::uint32_t count = 1;
    while (count < most && i + count < span_.count && pair.takes[i + count] &&
           pair.sent[i + count] == begin && room.ready[i + count] == end) {
      ++count;
    }
    KVL_TRY(send_segment(room, pair, {span_.first + i, count}, begin, end));
    for (std::uint32_t k = i; k < i + count; ++k) pair.sent[k] = end;
    i += count;
  }
  return {};
}

Status PrefillRooms::send_segment(Room& room, Pair& pair, Range layers, std::uint64_t begin,
                                  std::uint64_t end) {
  std::vector<GroupPages> groups(room.pages.size());
  for (std::size_t g = 0; g < groups.size(); ++g) {
    groups[g] = {room.pages[g], pair.pages[g].pages, 0, pair.pages[g].first_token};
  }
  const auto [id, segment] = core_.new_segment();
  PlanRequest request;
  request.groups = groups;
  request.skip_tokens = begin;
  request.tokens = end;
  request.layers = layers;
  request.by_layer = false;
  request.ops_max = kSegmentOpsMax;
  const Status planned =
      plan_transfer(core_.rank.layout, pair.remote->layout, request, segment->plan);
  if (planned.code() == Code::exhausted && (layers.count > 1 || end - begin > 1)) {
    // Too many runs for one: halve it, by layers while there are several, then by tokens.
    core_.segments.erase(id);
    if (layers.count > 1) {
      const std::uint32_t half = layers.count / 2;
      KVL_TRY(send_segment(room, pair, {layers.first, half}, begin, end));
      return send_segment(room, pair, {layers.first + half, layers.count - half}, begin, end);
    }
    const std::uint64_t middle = begin + (end - begin) / 2;
    KVL_TRY(send_segment(room, pair, layers, begin, middle));
    return send_segment(room, pair, layers, middle, end);
  }
  if (!planned.ok()) {
    core_.segments.erase(id);
    return planned;
  }
  SegmentMessage message;
  message.readable = pair.mode == HandoffMode::pull;
  message.layers = layers;
  message.token_begin = begin;
  message.token_end = end;
  message.bytes = segment->plan.bytes;
  message.seq = pair.seq + static_cast<std::uint32_t>(pair.flights.size());
  message.crcs = checksums(segment->plan.ops, core_.rank.regions, pair.crc, room.room, message.seq);
  core_.metrics.crc_runs.add(message.crcs.size());
  if (room.state != PrefillState::moving) advance(room.state, PrefillState::moving);
  if (pair.mode == HandoffMode::pull) {
    core_.segments.erase(id);
    tell(room, pair, std::move(message));
    return {};
  }
  segment->side = HandoffSide::prefill;
  segment->room = room.room;
  segment->nonce = pair.nonce;
  segment->peer = pair.peer;
  segment->deadline_ns = room.deadline_ns;
  segment->remote = pair.remote;
  if (const Status status = core_.start(id, Direction::write); !status.ok()) {
    core_.segments.erase(id);
    return status;
  }
  pair.flights.push_back({id, false, std::move(message)});
  ++pair.flying;
  return {};
}

void PrefillRooms::tell(Room& room, Pair& pair, SegmentMessage message) {
  assert(message.seq == pair.seq);
  ++pair.seq;
  room.bytes += message.bytes;
  core_.metrics.sides[0].bytes.add(message.bytes);
  core_.metrics.sides[0].segments.add();
  if (message.readable || !message.crcs.empty()) {
    // The receiver plans the same runs: it needs the source pages.
    message.pages.resize(room.pages.size());
    for (std::size_t g = 0; g < room.pages.size(); ++g) {
      message.pages[g].first = pair.told[g];
      message.pages[g].ids.assign(room.pages[g].begin() + pair.told[g], room.pages[g].end());
      pair.told[g] = static_cast<std::uint32_t>(room.pages[g].size());
    }
  }
  core_.send(pair.peer, {Part::decode, room.room, pair.nonce, std::move(message)});
}

void PrefillRooms::maybe_finish(Room& room, Pair& pair) {
  if (!room.finished || pair.finish_sent || !pair.flights.empty()) return;
  pair.finish_sent = true;
  core_.send(pair.peer, {Part::decode, room.room, pair.nonce, Finish{pair.seq, room.metadata}});
}

void PrefillRooms::on_transfer(const Segment& segment, std::uint64_t segment_id, Code code,
                               Physical physical) {
  const auto found = rooms_.find(segment.room);
  if (found == rooms_.end()) return;
  Room& room = found->second;
  Pair* const pair = find_pair(room, segment.nonce);
  if (pair == nullptr) return;
  const auto flight = std::ranges::find(pair->flights, segment_id, &Flight::segment);
  if (flight == pair->flights.end() || flight->ended) return;
  flight->ended = true;
  --pair->flying;
  if (physical == Physical::quarantined) {
    pair->own_unproven = true;
    core_.note_unproven(room.room);
  }
  if (ended(room.state)) return settle(room);
  if (code != Code::ok) {
    return fail(room, code, "a write to decode failed: " + std::string(kvl::to_string(code)));
  }
  while (!pair->flights.empty() && pair->flights.front().ended) {
    tell(room, *pair, std::move(pair->flights.front().message));
    pair->flights.pop_front();
  }
  maybe_finish(room, *pair);
}

void PrefillRooms::on_done(const Peer& peer, const Message& message) {
  Room* const room = find_open(message.room);
  Pair* const pair = room == nullptr ? nullptr : find_pair(*room, message.nonce);
  if (pair == nullptr || pair->peer != peer.handle) return core_.metrics.stale_messages.add();
  if (!pair->finish_sent) {
    return fail(*room, Code::corrupt, "decode committed what was not finished");
  }
  pair->done = pair->remote_quiet = true;
  if (room->pairs.size() == room->accepts && std::ranges::all_of(room->pairs, &Pair::done)) {
    commit(*room);
  }
}

void PrefillRooms::commit(Room& room) {
  advance(room.state, PrefillState::committed);
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
  core_.deadlines.erase({room.deadline_ns, HandoffSide::prefill, room.room});
  log(LogLevel::info, "handoff.failed",
      {{"side", "prefill"}, {"room", room.room}, {"code", kvl::to_string(code)}, {"why", reason}});
  for (Pair& pair : room.pairs) {
    for (Flight& flight : pair.flights) {
      if (flight.ended || core_.cancel(flight.segment)) continue;
      flight.ended = true;  // had not begun
      --pair.flying;
    }
    if (pair.done) continue;
    pair.told_quiet = quiet(pair);
    core_.send(pair.peer,
               {Part::decode, room.room, pair.nonce, Abort{code, pair.told_quiet, reason}});
  }
  room.unsafe = !std::ranges::all_of(room.pairs, [this](const Pair& p) { return safe(p); });
  Metrics::Side& metrics = core_.metrics.sides[0];
  metrics.failed[std::min<std::size_t>(static_cast<std::size_t>(code), Metrics::kCodes - 1)].add();
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
    core_.send(peer,
               {Part::decode, message.room, message.nonce, Quiet{core_.can_vouch(message.room)}});
    if (core_.outcome(Part::prefill, message.room) == nullptr) {
      // Decode gave up before prefill came: who opens the room learns it at once.
      (void)core_.keep_early(Part::prefill, peer.handle, message);
    }
    return;
  }
  Room& room = found->second;
  Pair* const pair = find_pair(room, message.nonce);
  if (pair == nullptr) {
    core_.send(peer,
               {Part::decode, message.room, message.nonce, Quiet{core_.can_vouch(message.room)}});
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
