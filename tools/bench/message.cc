// Encoding of the benchmark's control messages.
#include "tools/bench/message.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

namespace kvl::bench {
namespace {

std::string word(std::string_view text) {
  std::string out(text);
  std::replace_if(
      out.begin(), out.end(), [](char c) { return c == ' ' || c == '\n' || c == '\t'; }, '_');
  return out;
}

}  // namespace

Message& Message::set(std::string_view key, std::string_view value) {
  fields_.emplace_back(word(key), word(value));
  return *this;
}
Message& Message::set(std::string_view key, std::uint64_t value) {
  return set(key, std::string_view(std::to_string(value)));
}
Message& Message::set(std::string_view key, double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return set(key, std::string_view(text));
}

std::string Message::text(std::string_view key) const {
  for (const auto& [name, value] : fields_) {
    if (name == key) return value;
  }
  return {};
}

std::uint64_t Message::number(std::string_view key, std::uint64_t fallback) const {
  const std::string value = text(key);
  std::uint64_t number = 0;
  const auto [rest, errc] = std::from_chars(value.data(), value.data() + value.size(), number);
  return errc == std::errc{} && rest == value.data() + value.size() ? number : fallback;
}

double Message::real(std::string_view key, double fallback) const {
  const std::string value = text(key);
  double number = 0;
  const auto [rest, errc] = std::from_chars(value.data(), value.data() + value.size(), number);
  return errc == std::errc{} && rest == value.data() + value.size() ? number : fallback;
}

Message& Message::set(const WorkloadSpec& spec) {
  return set("pages", spec.pages)
      .set("page_bytes", spec.page_bytes)
      .set("run_pieces", spec.run_pieces)
      .set("local_stride", spec.local_stride)
      .set("remote_stride", spec.remote_stride)
      .set("gap_bytes", spec.gap_bytes)
      .set("arena_bytes", spec.arena_bytes)
      .set("seed", spec.seed)
      .set("contiguous", std::uint64_t{spec.contiguous});
}

WorkloadSpec Message::spec() const {
  WorkloadSpec spec;
  spec.pages = number("pages");
  spec.page_bytes = number("page_bytes");
  spec.run_pieces = number("run_pieces");
  spec.local_stride = number("local_stride");
  spec.remote_stride = number("remote_stride");
  spec.gap_bytes = number("gap_bytes");
  spec.arena_bytes = number("arena_bytes");
  spec.seed = number("seed");
  spec.contiguous = number("contiguous") != 0;
  return spec;
}

std::string Message::encode() const {
  std::string out = verb_;
  for (const auto& [key, value] : fields_) out.append(" ").append(key).append("=").append(value);
  return out;
}

Result<Message> Message::parse(std::span<const std::byte> bytes) {
  if (bytes.empty() || bytes.size() > kBytesMax) {
    return Status{Code::invalid_argument, "a benchmark message has 1 to 4096 bytes"};
  }
  std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (std::any_of(rest.begin(), rest.end(), [](char c) { return c < 0x20 || c > 0x7e; })) {
    return Status{Code::invalid_argument, "a benchmark message is printable text"};
  }
  const auto take = [&rest] {
    const std::size_t blank = std::min(rest.find(' '), rest.size());
    const std::string_view part = rest.substr(0, blank);
    rest.remove_prefix(std::min(blank + 1, rest.size()));
    return part;
  };
  Message message(take());
  while (!rest.empty()) {
    const std::string_view field = take();
    const std::size_t equals = field.find('=');
    if (equals == std::string_view::npos || equals == 0) {
      return Status{Code::invalid_argument, "a benchmark message's field is key=value"};
    }
    message.fields_.emplace_back(field.substr(0, equals), field.substr(equals + 1));
  }
  return message;
}

}  // namespace kvl::bench
