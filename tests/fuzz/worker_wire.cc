// What a worker's processes and engines say to each other: room messages, metadata, commands and
// events of ranks.
#include <algorithm>

#include "tests/fuzz/fuzz.h"
#include "tools/worker/metadata.h"
#include "tools/worker/rank_wire.h"
#include "tools/worker/room_wire.h"

namespace kvl::fuzz {

void fuzz_worker_wire(Bytes input) {
  if (const auto message = worker::decode_room_message(input)) {
    const auto again = worker::decode_room_message(worker::encode(*message));
    require(again && again->kind == message->kind && again->code == message->code &&
                again->room == message->room,
            "a room message survives a trip");
  }
  if (const auto first = worker::decode_metadata(input)) {
    const auto again = worker::decode_metadata(worker::encode_metadata(first->token));
    require(again && again->token.token == first->token.token &&
                again->token.digest == first->token.digest,
            "metadata survives a trip");
  }
  // Booleans are bytes on this wire, so a first encoding may differ from the input, a second not.
  if (const auto command = worker::decode_command(input)) {
    const auto bytes = worker::encode(*command);
    const auto again = worker::decode_command(bytes);
    require(bytes.size() == input.size() && again && worker::encode(*again) == bytes,
            "a command survives a trip");
  }
  if (const auto event = worker::decode_event(input)) {
    const auto bytes = worker::encode(*event);
    const auto again = worker::decode_event(bytes);
    require(bytes.size() == input.size() && again && worker::encode(*again) == bytes,
            "an event survives a trip");
  }
}

Seeds seeds_worker_wire() {
  using namespace worker;
  ComputeJob job{.id = 3};
  job.batch = {Segment{.tokens = {1, 2, 3}, .pages = {4}, .logits = true}};
  job.kv.content.chain = {7, 8};
  job.kv.pages = {1, 2};
  job.kv.end_token = 900;
  OpenDecode open{.room = 5, .tokens = 100, .deadline_ms = 1000, .pages = {1, 2}};
  open.sources = {{{"10.0.0.1:1", 2}, {"10.0.0.2:1", 2}}, {}};
  RankOutput output{.job = 3, .rank = 1, .logits = {{0.5F, 1.5F}}, .wrong_pages = {2}};
  RoomEvent room{.rank = 1, .room = 9, .reason = "late", .metadata = seed("x")};
  return {encode(RoomMessage{RoomMessage::Kind::offer, Code::ok, 9}),
          encode_metadata(OutputToken{65, -0.5F, 77}),
          encode(Command{job}),
          encode(Command{OpenPrefill{.room = 1, .tokens = 9, .pages = {1}}}),
          encode(Command{FinishPrefill{1, seed("m")}}),
          encode(Command{open}),
          encode(Command{AbortRoom{.room = 1, .reason = "gone"}}),
          encode(Command{SendMessage{"a:1", {}, seed("m")}}),
          encode(RankEvent{output}),
          encode(RankEvent{RankUp{1, "a:1", 2, seed("layout")}}),
          encode(RankEvent{room}),
          encode(RankEvent{PeerMessage{{1}, seed("m")}}),
          encode(RankEvent{PeerLost{{1}, "a:1", Code::timed_out}})};
}

}  // namespace kvl::fuzz
