// Decode: segments that prefill has delivered (push) or made readable (pull), read and checked.
#include <algorithm>
#include <utility>

#include "kvcache/handoff/decode.h"

namespace kvl::handoff {

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

bool DecodeRooms::matches(const Room& room, const Source& source, const SegmentMessage& segment,
                          const TransferPlan& plan) {
  return core_.take_checksums(plan.ops, source.crc, room.open.room, segment.seq) == segment.crcs;
}

void DecodeRooms::on_segment(Peer& peer, const Message& message, const SegmentMessage& segment) {
  const auto [room, source] = find_source(peer, message);
  if (room == nullptr) return;
  if (segment.seq < source->seq && !segment.readable) return take_again(*room, *source, segment);
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
  take_delivered(*room, *source, segment);
}

// Checks what prefill has written; the first mismatch of a segment is forgiven and written again.
void DecodeRooms::take_delivered(Room& room, Source& source, const SegmentMessage& segment) {
  if (source.crc.mode == CrcMode::off) return arrive(room, source, segment);
  if (const Status status = plan(room, source, segment, scratch_); !status.ok()) {
    return fail(room, status.code(), status.context());
  }
  if (matches(room, source, segment, scratch_)) return arrive(room, source, segment);
  core_.note_corrupt(HandoffSide::decode, source.peer, room.open.room, segment.seq, segment.path,
                     false);
  source.doubts.push_back({segment.seq, segment.layers, segment.token_begin, segment.token_end});
  source.remote_quiet = false;
  core_.send(source.peer, {Part::prefill, room.open.room, room.nonce, Again{segment.seq}});
}

void DecodeRooms::take_again(Room& room, Source& source, const SegmentMessage& segment) {
  const auto doubt = std::ranges::find(source.doubts, segment.seq, &Doubt::seq);
  if (doubt == source.doubts.end() || doubt->layers != segment.layers ||
      doubt->token_begin != segment.token_begin || doubt->token_end != segment.token_end ||
      !segment.pages.empty()) {
    return fail(room, Code::corrupt, "a segment that was not asked for again");
  }
  if (const Status status = plan(room, source, segment, scratch_); !status.ok()) {
    return fail(room, status.code(), status.context());
  }
  const bool good = matches(room, source, segment, scratch_);
  (good ? core_.metrics.crc_retries_ok : core_.metrics.crc_retries_failed)[1].add();
  if (!good) {
    core_.note_corrupt(HandoffSide::decode, source.peer, room.open.room, segment.seq, segment.path,
                       true);
    return fail(room, Code::corrupt, "checksum of the pages does not match prefill's, twice");
  }
  source.doubts.erase(doubt);
  source.remote_quiet = source.stage == Source::Stage::finished && source.doubts.empty();
  arrive(room, source, segment);
}

Status DecodeRooms::read(Room& room, Source& source, const SegmentMessage& message,
                         const RailSet* failed) {
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
    segment->again = failed != nullptr;
    segment->avoid = failed != nullptr ? *failed : 0;
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
    core_.note_unproven(segment);
  }
  if (ended(room.state)) return settle(room);
  if (code != Code::ok) {
    return fail(room, code, "a read from prefill failed: " + std::string(kvl::to_string(code)));
  }
  const bool good = matches(room, *source, segment.message, segment.plan);
  if (segment.again) {
    (good ? core_.metrics.crc_retries_ok : core_.metrics.crc_retries_failed)[1].add();
  }
  if (good) return arrive(room, *source, segment.message);
  core_.note_corrupt(HandoffSide::decode, source->peer, room.open.room, segment.message.seq,
                     core_.path_name(segment.rails), segment.again);
  if (segment.again) {
    return fail(room, Code::corrupt, "checksum of the pages does not match prefill's, twice");
  }
  if (const Status status = read(room, *source, segment.message, &segment.rails); !status.ok()) {
    fail(room, status.code(), status.to_string());
  }
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

}  // namespace kvl::handoff
