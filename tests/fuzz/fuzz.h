// What every fuzz target is made of: a function over hostile bytes and a few honest inputs to start
// from. A target checks properties with require(); everything else the sanitizers see.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace kvl::fuzz {

using Bytes = std::span<const std::byte>;
using Seeds = std::vector<std::vector<std::byte>>;

struct Target {
  std::string_view name;
  void (*run)(Bytes input);
  Seeds (*seeds)();
};
// Every target there is: targets.cc, from the list in CMakeLists.txt.
std::span<const Target> targets();

// Aborts with the sentence: a property does not hold.
void require(bool holds, const char* what);

inline std::string_view text_of(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline std::vector<std::byte> seed(std::string_view text) {
  const Bytes bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}
inline std::vector<std::byte> join(std::initializer_list<Bytes> parts) {
  std::vector<std::byte> out;
  for (const Bytes part : parts) out.insert(out.end(), part.begin(), part.end());
  return out;
}

// Takes an input apart. At the end of the bytes everything is zero and empty.
class Input {
 public:
  explicit Input(Bytes bytes) : rest_(bytes) {}
  template <typename T>
  T number() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    const Bytes part = bytes(sizeof(T));
    if (!part.empty()) std::memcpy(&value, part.data(), part.size());
    return value;
  }
  Bytes bytes(std::size_t count) {
    const Bytes part = rest_.first(count < rest_.size() ? count : rest_.size());
    rest_ = rest_.subspan(part.size());
    return part;
  }
  // u16 length, then so many bytes: how an input holds a list of messages.
  Bytes piece() { return bytes(number<std::uint16_t>()); }
  Bytes rest() { return bytes(rest_.size()); }
  bool empty() const { return rest_.empty(); }

 private:
  Bytes rest_;
};

// The opposite of Input::piece().
inline std::vector<std::byte> piece(Bytes bytes) {
  const auto length = static_cast<std::uint16_t>(bytes.size());
  return join({std::as_bytes(std::span(&length, 1)), bytes});
}
inline std::vector<std::byte> piece(std::string_view text) {
  return piece(std::as_bytes(std::span(text)));
}

}  // namespace kvl::fuzz
