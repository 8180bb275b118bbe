// Commands and events as bytes, for ranks that are processes. Both ends are one build of one
// program on one host, so numbers are in the machine's order; a reader still checks every length.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "worker/messages.h"

namespace kvl::worker {

std::vector<std::byte> encode(const Command& command);
std::vector<std::byte> encode(const RankEvent& event);
// Nothing for bytes that encode() did not make.
std::optional<Command> decode_command(std::span<const std::byte> bytes);
std::optional<RankEvent> decode_event(std::span<const std::byte> bytes);

}  // namespace kvl::worker
