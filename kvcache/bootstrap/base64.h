// Base64 (RFC 4648, with padding): how bytes travel inside JSON.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvl::bootstrap {

std::string encode_base64(std::span<const std::byte> bytes);

// Nothing for text that is not exactly what encode_base64() writes.
std::optional<std::vector<std::byte>> decode_base64(std::string_view text);

}  // namespace kvl::bootstrap
