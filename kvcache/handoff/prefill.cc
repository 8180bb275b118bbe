// Prefill: from ready layers and accepted destinations to segments on their way. The end is in
// prefill_end.cc.
#include "kvcache/handoff/prefill.h"

#include <algorithm>
#include <utility>

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
  core_.mark(Stage::opened, HandoffSide::prefill, open.room);
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

Status PrefillRooms::check_accept(const Room& room, const Accept& accept, const Peer& peer) const {
  if (accept.tokens != room.tokens) {
    return {Code::invalid_argument, "prefill and decode disagree on the number of tokens"};
  }
  if (room.accepts != 0 && room.accepts != accept.accepts) {
    return {Code::invalid_argument, "decode ranks disagree on how many they are"};
  }
  if (agree(core_.crc_wish(), accept.crc).mode != CrcMode::off && !core_.cpu_readable) {
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
  if (find_pair(room, message.nonce) != nullptr) {
    return core_.note_misplaced(peer.handle, Code::invalid_argument, "a second accept");
  }
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
  pair.crc = agree(core_.crc_wish(), accept.crc);
  pair.skip_tokens = accept.skip_tokens;
  pair.pages = accept.groups;
  pair.takes.assign(span_.count, false);
  pair.sent.assign(span_.count, accept.skip_tokens);
  pair.told.assign(room.pages.size(), 0);
  for (std::size_t g = 0; g < room.pages.size(); ++g) {
    const Range layers = layers_between(core_.rank.layout, pair.remote->layout, g);
    for (std::uint32_t l = layers.first; l < layers.end(); ++l) pair.takes[l - span_.first] = true;
  }
  core_.mark(Stage::offered, HandoffSide::prefill, room.room);
  core_.send(peer, {Part::decode, room.room, pair.nonce, Offer{pair.crc}});
  if (room.pairs.size() == room.accepts) {
    core_.mark(Stage::accepted, HandoffSide::prefill, room.room);
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

Status PrefillRooms::plan(const Room& room, const Pair& pair, Range layers, std::uint64_t begin,
                          std::uint64_t end, TransferPlan& plan) const {
  std::vector<GroupPages> groups(room.pages.size());
  for (std::size_t g = 0; g < groups.size(); ++g) {
    groups[g] = {room.pages[g], pair.pages[g].pages, 0, pair.pages[g].first_token};
  }
  PlanRequest request;
  request.groups = groups;
  request.skip_tokens = begin;
  request.tokens = end;
  request.layers = layers;
  request.by_layer = false;
  request.ops_max = kSegmentOpsMax;
  return plan_transfer(core_.rank.layout, pair.remote->layout, request, plan);
}

Status PrefillRooms::send_segment(Room& room, Pair& pair, Range layers, std::uint64_t begin,
                                  std::uint64_t end) {
  const auto [id, segment] = core_.new_segment();
  const Status planned = plan(room, pair, layers, begin, end, segment->plan);
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
  message.crcs = core_.take_checksums(segment->plan.ops, pair.crc, room.room, message.seq);
  if (room.state != PrefillState::moving) advance(room.state, PrefillState::moving);
  core_.mark_layers(Stage::layer, HandoffSide::prefill, room.room, layers);
  if (pair.mode == HandoffMode::pull) {
    core_.segments.erase(id);
    tell(room, pair, std::move(message));
    return {};
  }
  KVL_TRY(launch(room, pair, id));
  pair.flights.push_back({id, false, std::move(message)});
  return {};
}

// Gives a planned segment to the engine, or drops it.
Status PrefillRooms::launch(Room& room, Pair& pair, std::uint64_t segment_id) {
  Segment* const segment = core_.segments.find(segment_id);
  segment->side = HandoffSide::prefill;
  segment->room = room.room;
  segment->nonce = pair.nonce;
  segment->peer = pair.peer;
  segment->deadline_ns = room.deadline_ns;
  segment->remote = pair.remote;
  if (const Status status = core_.start(segment_id, Direction::write); !status.ok()) {
    core_.segments.erase(segment_id);
    return status;
  }
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
  if (!room.finished || pair.finish_sent || !pair.flights.empty() || !pair.again.empty()) return;
  pair.finish_sent = true;
  core_.mark(Stage::all_layers, HandoffSide::prefill, room.room);
  core_.send(pair.peer, {Part::decode, room.room, pair.nonce, Finish{pair.seq, room.metadata}});
}

void PrefillRooms::on_transfer(const Segment& segment, std::uint64_t segment_id, Code code,
                               Physical physical) {
  const auto found = rooms_.find(segment.room);
  if (found == rooms_.end()) return;
  Room& room = found->second;
  Pair* const pair = find_pair(room, segment.nonce);
  if (pair == nullptr) return;
  std::deque<Flight>& flights = segment.again ? pair->again : pair->flights;
  const auto flight = std::ranges::find(flights, segment_id, &Flight::segment);
  if (flight == flights.end() || flight->ended) return;
  flight->ended = true;
  --pair->flying;
  if (physical == Physical::quarantined) {
    pair->own_unproven = true;
    core_.note_unproven(segment);
  }
  if (ended(room.state)) return settle(room);
  if (code != Code::ok) {
    return fail(room, code, "a write to decode failed: " + std::string(kvl::to_string(code)));
  }
  flight->rails = segment.rails;
  if (segment.again) {
    tell_again(room, *pair, *flight);
    flights.erase(flight);
    return maybe_finish(room, *pair);
  }
  while (!flights.empty() && flights.front().ended) {
    Flight& front = flights.front();
    if (pair->crc.mode != CrcMode::off) {
      front.message.path = core_.path_name(front.rails);
      pair->told_segments.push_back({front.message.layers, front.message.token_begin,
                                     front.message.token_end, front.rails, false});
    }
    tell(room, *pair, std::move(front.message));
    flights.pop_front();
  }
  maybe_finish(room, *pair);
}

}  // namespace kvl::handoff
