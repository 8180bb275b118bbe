// What the rank 0 of a decode worker and that of a prefill worker say about a room before its
// handoff opens, as messages between their engines. The handoff's deadline thus begins when both
// sides have pages, however long either was queued:
//
//   decode -> prefill   waiting (no pages yet), offer (pages are reserved), gone (gave up)
//   prefill -> decode   unknown, queued, start (opened here: open it too), ended (it failed: code)
//
// waiting and offer are repeated until an answer other than queued comes: they are also the sign of
// life. Bytes: 0 "kvlroom1", 8 kind, 9 code, 10 zero (6), 16 room (little-endian). 24 in all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvl/status.h"

namespace kvl::worker {

struct RoomMessage {
  enum class Kind : std::uint8_t {
    waiting = 1,
    offer = 2,
    gone = 3,
    unknown = 4,
    queued = 5,
    start = 6,
    ended = 7,
  };
  Kind kind = Kind::unknown;
  Code code = Code::ok;  // of gone and ended
  std::uint64_t room = 0;
};

std::vector<std::byte> encode(const RoomMessage& message);
// Nothing for bytes that are not such a message.
std::optional<RoomMessage> decode_room_message(std::span<const std::byte> bytes);

}  // namespace kvl::worker
