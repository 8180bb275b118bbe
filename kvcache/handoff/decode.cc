// Decode: a room opens, names its pages to its sources, and learns when all is there. Segments are
// in decode_segments.cc, the end in decode_end.cc, the group's agreement in group.cc.
#include "kvcache/handoff/decode.h"

#include <algorithm>
#include <cstring>
#include <utility>

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
  core_.mark(Stage::opened, HandoffSide::decode, id);
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

// By the path that carries bytes to the peer now. Both sides of a pair of rails are of one kind, so
// what our device cannot do, the other side's cannot either.
HandoffMode DecodeRooms::best_mode(PeerHandle peer) const {
  const Result<PeerInfo> info = core_.engine.describe(peer);
  if (!info.ok()) return HandoffMode::push;
  const bool reads_only = std::ranges::any_of(info->paths, [](const PathInfo& path) {
    const auto can = [&path](Cap cap) {
      return (path.caps & static_cast<std::uint32_t>(cap)) != 0;
    };
    return path.in_use && can(Cap::read) && !can(Cap::write);
  });
  return reads_only ? HandoffMode::pull : HandoffMode::push;
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
  // The first source decides for the room.
  if (room.open.mode == HandoffMode::best) room.open.mode = best_mode(source.peer);
  accept.mode = room.open.mode;
  accept.crc = core_.crc_wish();
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
  const CrcMode wish = core_.crc_wish().mode;
  const bool weaker = wish != CrcMode::automatic && offer.crc.mode < wish;
  if (source->stage != Source::Stage::accepted || weaker) {
    return fail(*room, Code::corrupt, "prefill's offer does not answer our accept");
  }
  if (offer.crc.mode != CrcMode::off && !core_.cpu_readable) {
    return fail(*room, Code::unsupported, "checksums of memory that the CPU cannot read");
  }
  source->stage = Source::Stage::offered;
  source->crc = offer.crc;
  const bool all = std::ranges::all_of(
      room->sources, [](const Source& s) { return s.stage >= Source::Stage::offered; });
  if (!all || room->state != DecodeState::opened) return;
  advance(room->state, DecodeState::accepted);
  core_.mark(Stage::accepted, HandoffSide::decode, room->open.room);
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
    core_.mark_layers(Stage::layer, HandoffSide::decode, room.open.room, {l, 1});
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
  source->remote_quiet = source->doubts.empty();
  check_complete(*room);
}

// Finished means that every layer was announced for all tokens: what is not being read has arrived.
void DecodeRooms::check_complete(Room& room) {
  if (room.state >= DecodeState::complete || !room.covered) return;
  for (const Source& source : room.sources) {
    if (source.stage != Source::Stage::finished || !source.reading.empty() ||
        !source.doubts.empty()) {
      return;
    }
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
  core_.mark(Stage::all_layers, HandoffSide::decode, room.open.room);
  vote(room);
}

void DecodeRooms::on_peer_ready(Peer& peer) {
  for (auto& [id, room] : rooms_) {
    for (Source& source : room.sources) {
      const bool same_life =
          source.remote != nullptr && source.remote->engine == peer.remote->engine;
      if (source.peer != peer.handle && !same_life) continue;
      if (!ended(room.state)) {
        if (source.stage == Source::Stage::unsent) send_accept(room, source, peer);
      } else if (same_life && !safe(room, source)) {
        // It was away when we ended: ask again whether it is quiet.
        source.peer = peer.handle;
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

}  // namespace kvl::handoff
