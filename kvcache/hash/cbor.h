// The five shapes of canonical CBOR (RFC 8949, shortest heads) that a block hash needs.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace kvl {

class CborWriter {
 public:
  void clear() { bytes_.clear(); }
  std::span<const std::uint8_t> view() const { return bytes_; }

  void unsigned_integer(std::uint64_t value) { head(0, value); }
  void byte_string(std::span<const std::uint8_t> bytes) {
    head(2, bytes.size());
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  void text(std::string_view text) {
    head(3, text.size());
    bytes_.insert(bytes_.end(), text.begin(), text.end());
  }
  void array(std::uint64_t items) { head(4, items); }  // the items follow
  void null() { bytes_.push_back(0xF6); }

 private:
  void head(std::uint8_t major, std::uint64_t value) {
    const auto type = static_cast<std::uint8_t>(major << 5);
    if (value < 24) {
      bytes_.push_back(static_cast<std::uint8_t>(type | value));
    } else if (value <= 0xFF) {
      put(type | 24, value, 1);
    } else if (value <= 0xFFFF) {
      put(type | 25, value, 2);
    } else if (value <= 0xFFFFFFFF) {
      put(type | 26, value, 4);
    } else {
      put(type | 27, value, 8);
    }
  }
  void put(int first, std::uint64_t value, int bytes) {
    bytes_.push_back(static_cast<std::uint8_t>(first));
    for (int i = bytes - 1; i >= 0; --i) {
      bytes_.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
    }
  }

  std::vector<std::uint8_t> bytes_;
};

}  // namespace kvl
