// Little-endian encoding for wire forms. The reader never reads past its end: a short or hostile
// message leaves ok() false and yields zeros.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace kvl {

static_assert(std::endian::native == std::endian::little, "wire forms are written by memcpy");

class WireWriter {
 public:
  template <typename T>
  WireWriter& put(T value) {
    static_assert(std::is_integral_v<T> || std::is_enum_v<T>);
    const auto* const raw = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), raw, raw + sizeof(T));
    return *this;
  }
  WireWriter& raw(std::span<const std::byte> data) {
    bytes_.insert(bytes_.end(), data.begin(), data.end());
    return *this;
  }
  // u32 length, then the bytes.
  WireWriter& blob(std::span<const std::byte> data) {
    return put(static_cast<std::uint32_t>(data.size())).raw(data);
  }
  WireWriter& text(std::string_view data) { return blob(std::as_bytes(std::span(data))); }
  std::vector<std::byte> take() { return std::move(bytes_); }
  std::span<const std::byte> view() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

class WireReader {
 public:
  explicit WireReader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <typename T>
  T get() {
    static_assert(std::is_integral_v<T> || std::is_enum_v<T>);
    T value{};
    const auto part = raw(sizeof(T));
    if (part.size() == sizeof(T)) std::memcpy(&value, part.data(), sizeof(T));
    return value;
  }
  std::span<const std::byte> raw(std::size_t bytes) {
    if (bytes > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const auto part = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return part;
  }
  std::span<const std::byte> blob(std::size_t bytes_max) {
    const auto bytes = get<std::uint32_t>();
    if (bytes > bytes_max) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    return raw(bytes);
  }
  std::string text(std::size_t bytes_max) {
    const auto part = blob(bytes_max);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  // Everything was there so far.
  bool ok() const { return ok_; }
  // … and nothing is left over.
  bool finished() const { return ok_ && rest_.empty(); }
  std::size_t left() const { return rest_.size(); }

 private:
  std::span<const std::byte> rest_;
  bool ok_ = true;
};

}  // namespace kvl
