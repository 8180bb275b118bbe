// A JSON checker without recursion and without a tree. Strings, which are nearly all of a prompt,
// go by eight bytes at a time.
#include "router/http/body_scan.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <charconv>
#include <cstring>

namespace kvl::http {
namespace {

enum class Key : std::uint8_t { other, stream, n, rid, prompt, messages, sampling_params };

constexpr std::uint64_t kOnes = 0x0101010101010101ull;
constexpr std::uint64_t kHighs = 0x8080808080808080ull;

// Bytes that end the plain part of a string: quote, backslash, control characters.
bool has_special(std::uint64_t word) {
  const auto zero_in = [](std::uint64_t v) { return (v - kOnes) & ~v & kHighs; };
  const std::uint64_t controls = (word - kOnes * 0x20) & ~word & kHighs;
  return (zero_in(word ^ (kOnes * '"')) | zero_in(word ^ (kOnes * '\\')) | controls) != 0;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  const char l = static_cast<char>(c | 0x20);
  return l >= 'a' && l <= 'f' ? l - 'a' + 10 : -1;
}

// Keys may be written with escapes, and engines decode them: so must we, or "bootstrap\u005froom"
// would slip by. Only ASCII matters here.
std::string decode_key(std::string_view raw) {
  std::string out;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    if (raw[i] != '\\') {
      out += raw[i];
    } else if (raw[i + 1] == 'u') {
      int code = 0;
      for (std::size_t d = 2; d < 6; ++d) code = code * 16 + hex_value(raw[i + d]);
      out += code > 0 && code < 0x80 ? static_cast<char>(code) : '?';
      i += 5;
    } else {
      out += raw[++i];
    }
  }
  return out;
}

bool is_session_key(std::string_view key) {
  return key.starts_with("bootstrap_") || key == "routed_dp_rank" ||
         key == "disagg_prefill_dp_rank" || key == "data_parallel_rank";
}

class Scanner {
 public:
  explicit Scanner(std::string_view body)
      : begin_(body.data()), p_(body.data()), end_(body.data() + body.size()) {}

  BodyScan run() {
    skip_blanks();
    if (p_ == end_ || *p_ != '{') {
      fail("the body is not a JSON object");
    } else {
      scan();
    }
    if (scan_.error != nullptr) scan_.error_offset = static_cast<std::size_t>(p_ - begin_);
    return std::move(scan_);
  }

 private:
  bool fail(const char* why) {
    if (scan_.error == nullptr) scan_.error = why;
    return false;
  }
  void skip_blanks() {
    while (p_ != end_ && (*p_ == ' ' || *p_ == '\n' || *p_ == '\t' || *p_ == '\r')) ++p_;
  }
  bool in_object() const { return objects_[static_cast<std::size_t>(depth_)]; }

  // value (after value)* until the outermost object has ended.
  void scan() {
    while (true) {
      bool opened = false;
      if (!value(opened)) return;
      if (opened) continue;
      if (!after_value()) return;
      if (depth_ == 0) break;
    }
    scan_.last_brace = static_cast<std::size_t>(p_ - 1 - begin_);
    skip_blanks();
    if (p_ != end_) fail("bytes after the JSON object");
  }

  // One value. `opened`: a container that is not empty was entered and its first value is next.
  bool value(bool& opened) {
    skip_blanks();
    if (p_ == end_) return fail("the JSON object does not end");
    if (depth_ == 1) top_start_ = p_;
    if (counting_ && depth_ == 2) count_element();
    switch (*p_) {
      case '{':
      case '[':
        return open(opened);
      case '"':
        return string();
      case 't':
        if (depth_ == 1 && key_ == Key::stream) scan_.stream = true;
        return literal("true");
      case 'f':
        if (depth_ == 1 && key_ == Key::stream) scan_.stream = false;
        return literal("false");
      case 'n':
        return literal("null");
      default:
        return number();
    }
  }

  bool open(bool& opened) {
    const bool object = *p_ == '{';
    if (depth_ + 1 >= kJsonDepthMax) return fail("JSON nested too deep");
    ++depth_;
    objects_[static_cast<std::size_t>(depth_)] = object;
    value_is_n_ = false;
    if (depth_ == 2 && !object && key_ == Key::prompt) {
      counting_ = true;
      elements_ = 0;
      element_is_prompt_ = false;
    }
    ++p_;
    skip_blanks();
    if (p_ == end_) return fail("the JSON object does not end");
    if (*p_ == (object ? '}' : ']')) {
      ++p_;
      close();
      return true;
    }
    opened = true;
    return object ? key() : true;
  }

  void close() {
    --depth_;
    if (depth_ == 1 && counting_) {
      counting_ = false;
      if (element_is_prompt_) scan_.prompts = std::min(elements_, BodyScan::kFactorMax);
      ids_ = element_is_prompt_ ? 0 : elements_;
    }
  }

  // What follows a value: a comma and perhaps a key, or ends of containers.
  bool after_value() {
    while (depth_ > 0) {
      if (depth_ == 1) end_top_value();
      skip_blanks();
      if (p_ == end_) return fail("the JSON object does not end");
      if (*p_ == ',') {
        ++p_;
        if (!in_object()) return true;
        skip_blanks();
        return key();
      }
      if (*p_ != (in_object() ? '}' : ']')) return fail("a comma or a closing bracket is missing");
      ++p_;
      close();
    }
    return true;
  }

  void end_top_value() {
    const std::string_view value(top_start_, static_cast<std::size_t>(p_ - top_start_));
    if (key_ == Key::rid) scan_.rid = value;
    if (key_ == Key::prompt || key_ == Key::messages) {
      scan_.prompt = value;
      scan_.prompt_tokens = ids_;
    }
    key_ = Key::other;
    ids_ = 0;
  }

  bool key() {
    if (p_ == end_ || *p_ != '"') return fail("a key is missing");
    const char* const start = p_ + 1;
    bool escaped = false;
    if (!string(&escaped)) return false;
    const std::string_view raw(start, static_cast<std::size_t>(p_ - 1 - start));
    skip_blanks();
    if (p_ == end_ || *p_ != ':') return fail("a colon is missing");
    ++p_;
    value_is_n_ = false;
    if (depth_ == 1) {
      escaped ? top_key(decode_key(raw)) : top_key(raw);
    } else if (key_ == Key::sampling_params && depth_ <= 3) {
      value_is_n_ = raw == "n";
    }
    return true;
  }

  void top_key(std::string_view name) {
    scan_.has_fields = true;
    key_ = Key::other;
    if (name == "stream") key_ = Key::stream;
    if (name == "n") key_ = Key::n;
    if (name == "rid") key_ = Key::rid;
    if (name == "prompt" || name == "text" || name == "input_ids") key_ = Key::prompt;
    if (name == "messages") key_ = Key::messages;
    if (name == "sampling_params") key_ = Key::sampling_params;
    value_is_n_ = key_ == Key::n;
    if (scan_.session_key.empty() && is_session_key(name)) scan_.session_key = name;
  }

  void count_element() {
    if (elements_++ == 0) element_is_prompt_ = *p_ == '"' || *p_ == '[';
  }

  bool string(bool* escaped = nullptr) {
    ++p_;
    while (true) {
      std::uint64_t word = 0;
      while (end_ - p_ >= 8) {
        std::memcpy(&word, p_, 8);
        if (has_special(word)) break;
        p_ += 8;
      }
      while (p_ != end_ && *p_ != '"' && *p_ != '\\' && static_cast<unsigned char>(*p_) >= 0x20) {
        ++p_;
      }
      if (p_ == end_) return fail("a string does not end");
      if (*p_ == '"') break;
      if (*p_ != '\\') return fail("a control character in a string");
      if (escaped != nullptr) *escaped = true;
      if (!escape()) return false;
    }
    ++p_;
    return true;
  }

  bool escape() {
    if (end_ - p_ < 2) return fail("a string does not end");
    const char c = p_[1];
    if (c == 'u') {
      for (int i = 2; i < 6; ++i) {
        if (end_ - p_ <= i || hex_value(p_[i]) < 0) return fail("a bad \\u escape");
      }
      p_ += 6;
      return true;
    }
    if (std::strchr("\"\\/bfnrt", c) == nullptr || c == '\0') return fail("a bad escape");
    p_ += 2;
    return true;
  }

  bool literal(std::string_view word) {
    if (std::string_view(p_, static_cast<std::size_t>(end_ - p_)).substr(0, word.size()) != word) {
      return fail("not a JSON value");
    }
    p_ += word.size();
    return true;
  }

  bool digits() {
    if (p_ == end_ || !is_digit(*p_)) return fail("not a JSON value");
    while (p_ != end_ && is_digit(*p_)) ++p_;
    return true;
  }

  bool number() {
    const char* const start = p_;
    if (*p_ == '-') ++p_;
    if (p_ != end_ && *p_ == '0') {
      ++p_;
    } else if (!digits()) {
      return false;
    }
    if (p_ != end_ && *p_ == '.') {
      ++p_;
      if (!digits()) return false;
    }
    if (p_ != end_ && (*p_ == 'e' || *p_ == 'E')) {
      ++p_;
      if (p_ != end_ && (*p_ == '+' || *p_ == '-')) ++p_;
      if (!digits()) return false;
    }
    if (value_is_n_) note_n(start);
    return true;
  }

  void note_n(const char* start) {
    std::uint32_t n = 0;
    const auto [end, errc] = std::from_chars(start, p_, n);
    if (errc == std::errc::result_out_of_range) n = BodyScan::kFactorMax;
    scan_.n = std::clamp(n, scan_.n, BodyScan::kFactorMax);
  }

  BodyScan scan_;
  const char* const begin_;
  const char* p_;
  const char* const end_;
  int depth_ = 0;
  std::bitset<kJsonDepthMax> objects_;  // by depth: an object, not a list
  Key key_ = Key::other;                // the top-level key whose value is being read
  const char* top_start_ = nullptr;     // where that value starts
  bool value_is_n_ = false;
  bool counting_ = false;  // inside the list of prompts
  bool element_is_prompt_ = false;
  std::uint32_t elements_ = 0;
  std::uint32_t ids_ = 0;  // of the list that has just ended
};

}  // namespace

BodyScan scan_body(std::string_view body) { return Scanner(body).run(); }

}  // namespace kvl::http
