// Decode: from named pages to arrived layers, and to the end. The group's agreement is in group.cc.
#include "kvcache/handoff/decode.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kvl/log.h"

namespace kvl::handoff {

DecodeRooms::DecodeRooms(Core& core) : core_(core), span_(layer_span(core.rank.layout)) {
  // Nonces must differ from those of other ranks and of this process's earlier lives: counted from
  // a point that the engine's random id chooses.
  const EngineId id = core.engine.id();
  std::array<std::uint64_t, 2> words{};
  static_assert(sizeof(words) == sizeof(id));
  std::memcpy(words.data(), id.data(), sizeof(words));
  next_nonce_ = mix(words[0] ^ mix(words[1] ^ mix(core.engine.epoch())));
}

DecodeRooms::Room* DecodeRooms::find_open(std::uint64_t room) {
  const auto found = rooms_.find(room);
  return found == rooms_.end() || ended(found->second.state) ? nullptr : &found->second;
}

Status DecodeRooms::check(const DecodeOpen& open) {
  if (!core_.rank.decode) return {Code::invalid_argument, "this rank does not decode"};
  if (open.tokens > kTokensMax || open.skip_tokens >= open.tokens) {
    return {Code::invalid_argument, "tokens"};
  }
  if (open.sources.empty()) return {Code::invalid_argument, "no source"};
  for (const HandoffSource& source : open.sources) {
    if (source.accepts == 0 || source.accepts > kAcceptsMax) {
      return {Code::invalid_argument, "accepts of a source"};
    }
    const auto same = [&source](const HandoffSource& s) { return s.peer == source.peer; };
    if (std::ranges::count_if(open.sources, same) > 1) {
      return {Code::invalid_argument, "a source is named twice"};
    }
    const Peer* const peer = core_.find_peer(source.peer);
    if (peer != nullptr && peer->refused()) return {Code::unsupported, "the peer was refused"};
  }
  if (open.group_size == 0 || open.group_size > kGroupSizeMax ||
      open.group_rank >= open.group_size) {
    return {Code::invalid_argument, "group"};
  }
  const auto groups = core_.rank.layout.groups();
  if (open.pages.size() != groups.size()) return {Code::invalid_argument, "groups of pages"};
  std::size_t total = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const HandoffPages& pages = open.pages[g];
    if (pages.first_token > open.skip_tokens) {
      return {Code::invalid_argument, "pages begin after skip_tokens"};
    }
    KVL_TRY(check_pages(groups[g], pages.ids, pages.first_token, open.tokens));
    total += pages.ids.size();
  }
  if (total > kRoomPagesMax) return {Code::invalid_argument, "more pages than can be named"};
  return {};
}

Status DecodeRooms::open(DecodeOpen open) {
  KVL_TRY(check(open));
  const std::uint64_t id = open.room;
  if (rooms_.contains(id)) {
    return {Code::invalid_argument, "the room is open, or its pages are not released"};
  }
  core_.forget_outcome(Part::decode, id);
  Room& room = rooms_[id];
  room.open = std::move(open);
  room.nonce = next_nonce_++;
  room.opened_ns = core_.clock.now_ns();
  room.deadline_ns = core_.deadline_from(room.open.deadline_ms);
  room.layer_told.assign(span_.count, false);
  if (leads(room)) room.members.resize(room.open.group_size);
  for (const HandoffSource& from : room.open.sources) {
    Source& source = room.sources.emplace_back();
    source.peer = from.peer;
    source.accepts = from.accepts;
    source.pages.resize(core_.rank.layout.groups().size());
    source.gives.assign(span_.count, false);
    source.announced.assign(span_.count, room.open.skip_tokens);
    source.arrived.assign(span_.count, 0);
  }
  core_.deadlines.emplace(room.deadline_ns, HandoffSide::decode, id);
  core_.metrics.sides[1].opened.add();
  for (Source& source : room.sources) {
    Peer* const peer = core_.find_peer(source.peer);
    if (!ended(room.state) && peer != nullptr && peer->ready()) send_accept(room, source, *peer);
  }
  if (!leads(room) && !ended(room.state)) {
    Peer* const lead = core_.find_peer(room.open.lead);
    if (lead != nullptr && lead->ready()) send_join(room, *lead);
  }
  for (const Core::Early& early : core_.take_early(Part::lead, id)) {
    Peer* const peer = core_.find_peer(early.peer);
    if (peer == nullptr || !peer->ready()) continue;
    if (const auto* join = std::get_if<Join>(&early.message.body)) {
      on_join(*peer, early.message, *join);
    } else if (std::holds_alternative<Vote>(early.message.body)) {
      on_vote(*peer, early.message);
    } else if (const auto* abort = std::get_if<Abort>(&early.message.body)) {
      on_member_abort(*peer, early.message, *abort);
    }
  }
  return {};
}

Status DecodeRooms::abort(std::uint64_t room_id, Code code, std::string reason) {
  Room* const room = find_open(room_id);
  if (room == nullptr) return {Code::not_found, "room"};
  if (code == Code::ok) return {Code::invalid_argument, "an abort needs a code"};
  fail(*room, code, std::move(reason));
  return {};
}

// Names our pages to a source that has just become ready, or was.
void DecodeRooms::send_accept(Room& room, Source& source, Peer& peer) {
  if (!peer.remote->prefill) {
    return fail(room, Code::unsupported, "a source does not prefill");
  }
  source.stage = Source::Stage::accepted;
  source.epoch = peer.epoch;
  source.remote = peer.remote;
  for (std::size_t g = 0; g < source.pages.size(); ++g) {
    const Range layers = layers_between(peer.remote->layout, core_.rank.layout, g);
    for (std::uint32_t l = layers.first; l < layers.end(); ++l) {
      source.gives[l - span_.first] = true;
    }
  }
  Accept accept;
  accept.tokens = room.open.tokens;
  accept.skip_tokens = room.open.skip_tokens;
  accept.mode = room.open.mode;
  accept.crc = core_.crc;
  accept.accepts = source.accepts;
  for (const HandoffPages& pages : room.open.pages) {
    accept.groups.push_back({pages.first_token, pages.ids});
  }
  core_.send(peer, {Part::prefill, room.open.room, room.nonce, std::move(accept)});
  const bool all_known = std::ranges::all_of(
      room.sources, [](const Source& s) { return s.stage != Source::Stage::unsent; });
  if (!all_known) return;
  if (const Status status = check_coverage(room); !status.ok()) {
    return fail(room, status.code(), status.context());
  }
  room.covered = true;
  tell_layers(room, span_);
}

// Every head of every layer held here must come from some source.
Status DecodeRooms::check_coverage(const Room& room) const {
  const auto groups = core_.rank.layout.groups();
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (std::uint32_t l = groups[g].layers.first; l < groups[g].layers.end(); ++l) {
      std::uint32_t heads = 0;
      for (const Source& source : room.sources) {
        const PageLayout& there = source.remote->layout;
        if (!layers_between(there, core_.rank.layout, g).contains(l)) continue;
        heads += intersect(there.groups()[g].heads, groups[g].heads).count;
      }
      if (heads != groups[g].heads.count) {
        return {Code::invalid_argument, "the sources do not hold every layer and head, once"};
      }
    }
  }
  return {};
}

std::pair<DecodeRooms::Room*, DecodeRooms::Source*> DecodeRooms::find_source(
    Peer& peer, const Message& message) {
  const auto found = rooms_.find(message.room);
  Room* const room = found == rooms_.end() ? nullptr : &found->second;
  if (room != nullptr && room->nonce == message.nonce) {
    const auto source = std::ranges::find(room->sources, peer.handle, &Source::peer);
    if (source != room->sources.end()) {
      if (!ended(room->state)) return {room, &*source};
      return {nullptr, nullptr};  // it has been told, or will see our abort
    }
  }
  core_.metrics.stale_messages.add();
  if (room == nullptr && core_.outcome(Part::decode, message.room) == nullptr) {
    core_.send(peer, {Part::prefill, message.room, message.nonce,
                      Abort{Code::not_found, true, "decode does not know the room"}});
  }
  return {nullptr, nullptr};
}

void DecodeRooms::on_offer(Peer& peer, const Message& message, const Offer& offer) {
  const auto [room, source] = find_source(peer, message);
  if (room == nullptr) return;
  if (source->stage != Source::Stage::accepted || offer.crc.mode < core_.crc.mode) {
    return fail(*room, Code::corrupt, "prefill's offer does not answer our accept");
  }
  if (offer.crc.mode != CrcMode::off && !core_.cpu_readable) {
    return fail(*room, Code::unsupported, "checksums of memory that the CPU cannot read");
  }
  source->stage = Source::Stage::offered;
  source->crc = offer.crc;
  const bool all = std::ranges::all_of(
      room->sources, [](const Source& s) { return s.stage >= Source::Stage::offered; });
  if (all && room->state == DecodeState::opened) advance(room->state, DecodeState::accepted);
}

Status DecodeRooms::check_segment(const Room& room, const Source& source,
                                  const SegmentMessage& segment) const {
  if (source.stage != Source::Stage::offered || segment.seq != source.seq ||
      segment.readable != (room.open.mode == HandoffMode::pull) ||
      segment.token_end > room.open.tokens || intersect(segment.layers, span_) != segment.layers) {
    return {Code::corrupt, "a segment that does not fit the room"};
  }
  for (std::uint32_t l = segment.layers.first; l < segment.layers.end(); ++l) {
    const std::uint32_t i = l - span_.first;
    if (!source.gives[i] || source.announced[i] != segment.token_begin) {
      return {Code::corrupt, "a segment of the wrong layers or tokens"};
    }
  }
  return {};
}

Status DecodeRooms::take_pages(Source& source, const SegmentMessage& segment) {
  if (segment.pages.empty()) return {};
  if (segment.pages.size() != source.pages.size()) {
    return {Code::corrupt, "source pages do not match the layout's groups"};
  }
  std::size_t total = 0;
  for (std::size_t g = 0; g < source.pages.size(); ++g) {
    auto& known = source.pages[g];
    const SegmentMessage::Pages& more = segment.pages[g];
    total += known.size() + more.ids.size();
    if (more.first != known.size() || total > kRoomPagesMax) {
      return {Code::corrupt, "source pages do not continue those before"};
    }
    known.insert(known.end(), more.ids.begin(), more.ids.end());
  }
  return {};
}

Status DecodeRooms::plan(const Room& room, const Source& source, const SegmentMessage& segment,
                         TransferPlan& plan) const {
  std::vector<GroupPages> groups(source.pages.size());
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const HandoffPages& mine = room.open.pages[g];
    groups[g] = {source.pages[g], mine.ids, 0, mine.first_token};
  }
  PlanRequest request;
  request.groups = groups;
  request.skip_tokens = segment.token_begin;
  request.tokens = segment.token_end;
  request.layers = segment.layers;
  request.by_layer = false;
  request.swap_sides = true;
  request.ops_max = kSegmentOpsMax;  // as prefill planned it
  return plan_transfer(source.remote->layout, core_.rank.layout, request, plan);
}

Status DecodeRooms::verify(const Room& room, const Source& source, const SegmentMessage& segment,
                           const TransferPlan& plan) {
  if (source.crc.mode == CrcMode::off) return {};
  const std::vector<std::uint32_t> here =
      checksums(plan.ops, core_.rank.regions, source.crc, room.open.room, segment.seq);
  core_.metrics.crc_runs.add(here.size());
  if (here == segment.crcs) return {};
  core_.metrics.crc_mismatches.add();
  return {Code::corrupt, "checksum of the pages does not match prefill's"};
}

void DecodeRooms::on_segment(Peer& peer, const Message& message, const SegmentMessage& segment) {
  const auto [room, source] = find_source(peer, message);
  if (room == nullptr) return;
  Status status = check_segment(*room, *source, segment);
  if (status.ok()) status = take_pages(*source, segment);
  if (!status.ok()) return fail(*room, status.code(), status.context());
  ++source->seq;
  for (std::uint32_t l = segment.layers.first; l < segment.layers.end(); ++l) {
    source->announced[l - span_.first] = segment.token_end;
  }
  if (room->state < DecodeState::moving) advance(room->state, DecodeState::moving);
  if (segment.readable) {
    status = read(*room, *source, segment);
    if (!status.ok()) fail(*room, status.code(), status.to_string());
    return;
  }
  if (source->crc.mode != CrcMode::off) {
    status = plan(*room, *source, segment, scratch_);
    if (status.ok()) status = verify(*room, *source, segment, scratch_);
    if (!status.ok()) return fail(*room, status.code(), status.context());
  }
  arrive(*room, *source, segment);
}

Status DecodeRooms::read(Room& room, Source& source, const SegmentMessage& message) {
  const auto [id, segment] = core_.new_segment();
  Status status = plan(room, source, message, segment->plan);
  if (status.ok()) {
    segment->side = HandoffSide::decode;
    segment->room = room.open.room;
    segment->nonce = room.nonce;
    segment->peer = source.peer;
    segment->deadline_ns = room.deadline_ns;
    segment->remote = source.remote;
    segment->message = message;
    segment->message.bytes = segment->plan.bytes;
    status = core_.start(id, Direction::read);
  }
  if (!status.ok()) {
    core_.segments.erase(id);
    return status;
  }
  source.reading.push_back(id);
  return {};
}

void DecodeRooms::on_transfer(const Segment& segment, std::uint64_t segment_id, Code code,
                              Physical physical) {
  const auto found = rooms_.find(segment.room);
  if (found == rooms_.end() || found->second.nonce != segment.nonce) return;
  Room& room = found->second;
  const auto source = std::ranges::find(room.sources, segment.peer, &Source::peer);
  if (source == room.sources.end() || std::erase(source->reading, segment_id) == 0) return;
  if (physical == Physical::quarantined) {
    source->own_unproven = true;
    core_.note_unproven(room.open.room);
  }
  if (ended(room.state)) return settle(room);
  if (code != Code::ok) {
    return fail(room, code, "a read from prefill failed: " + std::string(kvl::to_string(code)));
  }
  if (const Status status = verify(room, *source, segment.message, segment.plan); !status.ok()) {
    return fail(room, status.code(), status.context());
  }
  arrive(room, *source, segment.message);
}

// The bytes of a segment are here and checked.
void DecodeRooms::arrive(Room& room, Source& source, const SegmentMessage& segment) {
  room.bytes += segment.bytes;
  core_.metrics.sides[1].bytes.add(segment.bytes);
  core_.metrics.sides[1].segments.add();
  for (std::uint32_t l = segment.layers.first; l < segment.layers.end(); ++l) {
    source.arrived[l - span_.first] += segment.token_end - segment.token_begin;
  }
  tell_layers(room, segment.layers);
  check_complete(room);
}

void DecodeRooms::tell_layers(Room& room, Range layers) {
  if (!room.covered) return;
  const std::uint64_t wanted = room.open.tokens - room.open.skip_tokens;
  for (std::uint32_t l = layers.first; l < layers.end(); ++l) {
    const std::uint32_t i = l - span_.first;
    bool any = false, all = true;
    for (const Source& source : room.sources) {
      any = any || source.gives[i];
      all = all && (!source.gives[i] || source.arrived[i] == wanted);
    }
    if (!any || !all || room.layer_told[i]) continue;
    room.layer_told[i] = true;
    HandoffEvent event;
    event.kind = HandoffEvent::Kind::layer_ready;
    event.side = HandoffSide::decode;
    event.room = room.open.room;
    event.layer = l;
    core_.emit(std::move(event));
  }
}

void DecodeRooms::on_finish(Peer& peer, const Message& message, const Finish& finish) {
  const auto [room, source] = find_source(peer, message);
  if (room == nullptr) return;
  bool whole = source->stage == Source::Stage::offered && finish.segments == source->seq;
  for (std::uint32_t i = 0; i < span_.count; ++i) {
    whole = whole && (!source->gives[i] || source->announced[i] == room->open.tokens);
  }
  if (!whole) return fail(*room, Code::corrupt, "prefill finished before it sent everything");
  source->stage = Source::Stage::finished;
  source->metadata = finish.metadata;
  // Push: the last of its writes has been acknowledged, and no other will follow.
  source->remote_quiet = true;
  check_complete(*room);
}

// Finished means that every layer was announced for all tokens: what is not being read has arrived.
void DecodeRooms::check_complete(Room& room) {
  if (room.state >= DecodeState::complete || !room.covered) return;
  for (const Source& source : room.sources) {
    if (source.stage != Source::Stage::finished || !source.reading.empty()) return;
  }
  assert(std::ranges::all_of(room.sources, [&room](const Source& source) {
    for (std::size_t i = 0; i < source.gives.size(); ++i) {
      if (source.gives[i] && source.arrived[i] != room.open.tokens - room.open.skip_tokens) {
        return false;
      }
    }
    return true;
  }));
  advance(room.state, DecodeState::complete);
  vote(room);
}

void DecodeRooms::commit(Room& room) {
  advance(room.state, DecodeState::committed);
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
  core_.deadlines.erase({room.deadline_ns, HandoffSide::decode, room.open.room});
  log(LogLevel::info, "handoff.failed",
      {{"side", "decode"},
       {"room", room.open.room},
       {"code", kvl::to_string(code)},
       {"why", reason}});
  for (Source& source : room.sources) {
    std::erase_if(source.reading, [this](std::uint64_t id) { return !core_.cancel(id); });
    source.told_quiet = quiet(source);
    core_.send(source.peer,
               {Part::prefill, room.open.room, room.nonce, Abort{code, source.told_quiet, reason}});
  }
  abort_group(room, code, reason);
  room.unsafe = !std::ranges::all_of(room.sources, [&](const Source& s) { return safe(room, s); });
  Metrics::Side& metrics = core_.metrics.sides[1];
  metrics.failed[std::min<std::size_t>(static_cast<std::size_t>(code), Metrics::kCodes - 1)].add();
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
    core_.send(peer,
               {Part::prefill, message.room, message.nonce, Quiet{core_.can_vouch(message.room)}});
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

void DecodeRooms::on_peer_ready(Peer& peer) {
  for (auto& [id, room] : rooms_) {
    for (Source& source : room.sources) {
      if (source.peer != peer.handle) continue;
      if (!ended(room.state)) {
        if (source.stage == Source::Stage::unsent) send_accept(room, source, peer);
      } else if (!safe(room, source)) {
        // It was away when we ended: ask again whether it is quiet.
        core_.send(peer, {Part::prefill, room.open.room, room.nonce,
                          Abort{Code::aborted, quiet(source), "asked again"}});
      }
      break;
    }
    if (!ended(room.state) && !leads(room) && room.open.lead == peer.handle && !room.joined) {
      send_join(room, peer);
    }
  }
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

void DecodeRooms::on_peer_down(PeerHandle peer, std::uint64_t epoch, bool fenced) {
  for (auto& [id, room] : rooms_) {
    bool lost = false;
    for (Source& source : room.sources) {
      if (source.peer != peer || source.epoch > epoch) continue;
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
