// Prefill: a segment whose checksum did not match at decode is written once more.
#include <algorithm>
#include <utility>

#include "kvcache/handoff/prefill.h"

namespace kvl::handoff {

void PrefillRooms::on_again(const Peer& peer, const Message& message, const Again& again) {
  Room* const room = find_open(message.room);
  Pair* const pair = room == nullptr ? nullptr : find_pair(*room, message.nonce);
  if (pair == nullptr || pair->peer != peer.handle) return core_.metrics.stale_messages.add();
  if (pair->done || again.seq >= pair->told_segments.size() ||
      pair->told_segments[again.seq].again) {
    return fail(*room, Code::corrupt, "decode asked again for what it may not ask for");
  }
  const Told& told = pair->told_segments[again.seq];
  core_.note_corrupt(HandoffSide::prefill, pair->peer, room->room, again.seq,
                     core_.path_name(told.rails), false);
  if (const Status status = write_again(*room, *pair, again.seq); !status.ok()) {
    fail(*room, status.code(), status.to_string());
  }
}

// The same runs to the same pages, by rails that have not carried them where there are such.
Status PrefillRooms::write_again(Room& room, Pair& pair, std::uint32_t seq) {
  Told& told = pair.told_segments[seq];
  told.again = true;
  const auto [id, segment] = core_.new_segment();
  segment->again = true;
  segment->avoid = told.rails;
  if (const Status status =
          plan(room, pair, told.layers, told.token_begin, told.token_end, segment->plan);
      !status.ok()) {
    core_.segments.erase(id);
    return status;
  }
  SegmentMessage message;
  message.seq = seq;
  message.layers = told.layers;
  message.token_begin = told.token_begin;
  message.token_end = told.token_end;
  message.bytes = segment->plan.bytes;
  // Read again: the checksum, or the message that it came in, may have been what was wrong.
  message.crcs = core_.take_checksums(segment->plan.ops, pair.crc, room.room, seq);
  KVL_TRY(launch(room, pair, id));
  pair.again.push_back({id, false, std::move(message)});
  return {};
}

void PrefillRooms::tell_again(Room& room, Pair& pair, const Flight& flight) {
  SegmentMessage message = flight.message;
  message.path = core_.path_name(flight.rails);
  core_.send(pair.peer, {Part::decode, room.room, pair.nonce, std::move(message)});
}

}  // namespace kvl::handoff
