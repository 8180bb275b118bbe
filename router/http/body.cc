// The chunked coding as a state machine over single bytes; payload goes by in one step per chunk.
#include "router/http/body.h"

#include <algorithm>

namespace kvl::http {
namespace {

constexpr std::uint32_t kIgnoredMax = 16 << 10;  // extensions and trailers of one message
constexpr std::uint8_t kSizeDigitsMax = 15;      // a chunk below 2^60 bytes

}  // namespace

BodyReader::BodyReader(Kind kind, std::uint64_t bytes)
    : kind_(kind), state_(State::payload), remaining_(bytes) {
  if (kind == Kind::chunked) state_ = State::size;
  if (kind == Kind::length && bytes == 0) state_ = State::done;
}

std::size_t BodyReader::take(std::string_view data, Pieces& out) {
  std::size_t taken = 0;
  while (taken < data.size() && state_ != State::done && state_ != State::bad) {
    if (state_ != State::payload) {
      step(data[taken++]);
      continue;
    }
    if (out.full()) break;
    taken += take_payload(data.substr(taken), out);
  }
  return taken;
}

std::size_t BodyReader::take_payload(std::string_view data, Pieces& out) {
  if (kind_ == Kind::until_close) {
    out.add(data);
    return data.size();
  }
  const std::string_view piece = data.substr(0, std::min<std::uint64_t>(data.size(), remaining_));
  out.add(piece);
  remaining_ -= piece.size();
  if (remaining_ == 0) state_ = kind_ == Kind::length ? State::done : State::payload_cr;
  return piece.size();
}

void BodyReader::step(char c) {
  switch (state_) {
    case State::size:
      size_digit(c);
      break;
    case State::extension:
      if (c == '\r') {
        state_ = State::size_lf;
      } else if (c == '\n' || ++ignored_ > kIgnoredMax) {
        state_ = State::bad;
      }
      break;
    case State::size_lf:
      c == '\n' ? end_of_size() : void(state_ = State::bad);
      break;
    case State::payload_cr:
      state_ = c == '\r' ? State::payload_lf : State::bad;
      break;
    case State::payload_lf:
      state_ = c == '\n' ? State::size : State::bad;
      digits_ = 0;
      break;
    case State::trailer:
      state_ = c == '\r' ? State::last_lf : c == '\n' ? State::bad : State::trailer_line;
      break;
    case State::trailer_line:
      if (c == '\r') {
        state_ = State::trailer_lf;
      } else if (c == '\n' || ++ignored_ > kIgnoredMax) {
        state_ = State::bad;
      }
      break;
    case State::trailer_lf:
      state_ = c == '\n' ? State::trailer : State::bad;
      break;
    case State::last_lf:
      state_ = c == '\n' ? State::done : State::bad;
      break;
    case State::payload:
    case State::done:
    case State::bad:
      break;
  }
}

void BodyReader::size_digit(char c) {
  int value = -1;
  if (c >= '0' && c <= '9') value = c - '0';
  if (c >= 'a' && c <= 'f') value = c - 'a' + 10;
  if (c >= 'A' && c <= 'F') value = c - 'A' + 10;
  if (value >= 0) {
    if (++digits_ > kSizeDigitsMax) state_ = State::bad;
    remaining_ = (digits_ == 1 ? 0 : remaining_ << 4) | static_cast<std::uint64_t>(value);
    return;
  }
  if (digits_ == 0) {
    state_ = State::bad;
  } else if (c == '\r') {
    state_ = State::size_lf;
  } else {
    state_ = c == ';' || c == ' ' || c == '\t' ? State::extension : State::bad;
  }
}

void BodyReader::end_of_size() { state_ = remaining_ == 0 ? State::trailer : State::payload; }

}  // namespace kvl::http
