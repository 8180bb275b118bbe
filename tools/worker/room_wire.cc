// Room messages to bytes and back.
#include "worker/room_wire.h"

#include <algorithm>
#include <string_view>

namespace kvl::worker {
namespace {

constexpr std::string_view kMagic = "kvlroom1";
constexpr std::size_t kBytes = 24;
constexpr std::size_t kRoomAt = 16;

}  // namespace

std::vector<std::byte> encode(const RoomMessage& message) {
  std::vector<std::byte> bytes(kBytes);
  std::transform(kMagic.begin(), kMagic.end(), bytes.begin(),
                 [](char c) { return static_cast<std::byte>(c); });
  bytes[8] = static_cast<std::byte>(message.kind);
  bytes[9] = static_cast<std::byte>(message.code);
  for (std::size_t i = 0; i < 8; ++i) {
    bytes[kRoomAt + i] = static_cast<std::byte>(message.room >> (8 * i));
  }
  return bytes;
}

std::optional<RoomMessage> decode_room_message(std::span<const std::byte> bytes) {
  if (bytes.size() != kBytes) return std::nullopt;
  const bool ours = std::equal(kMagic.begin(), kMagic.end(), bytes.begin(),
                               [](char c, std::byte b) { return static_cast<std::byte>(c) == b; });
  const auto kind = static_cast<std::uint8_t>(bytes[8]);
  if (!ours || kind < 1 || kind > 7) return std::nullopt;
  RoomMessage message;
  message.kind = static_cast<RoomMessage::Kind>(kind);
  const auto code = static_cast<std::uint8_t>(bytes[9]);
  message.code =
      code <= static_cast<std::uint8_t>(Code::internal) ? static_cast<Code>(code) : Code::internal;
  for (std::size_t i = 0; i < 8; ++i) {
    message.room |= static_cast<std::uint64_t>(bytes[kRoomAt + i]) << (8 * i);
  }
  return message;
}

}  // namespace kvl::worker
