// Where the body of a message ends: by length, by chunks, or with the connection. Gives the payload
// as views into the bytes that were read; framing is left out, nothing is moved.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvl::http {

// Pieces of payload found in one read. Bounded, so that one gathering write can carry them.
struct Pieces {
  static constexpr std::size_t kMax = 24;
  std::array<std::string_view, kMax> list;
  std::size_t count = 0;
  std::size_t bytes = 0;

  bool full() const { return count == kMax; }
  void clear() { count = bytes = 0; }
  void add(std::string_view piece) {
    if (piece.empty()) return;
    list[count++] = piece;
    bytes += piece.size();
  }
};

class BodyReader {
 public:
  static BodyReader none() { return BodyReader(Kind::length, 0); }
  static BodyReader length(std::uint64_t bytes) { return BodyReader(Kind::length, bytes); }
  static BodyReader chunked() { return BodyReader(Kind::chunked, 0); }
  static BodyReader until_close() { return BodyReader(Kind::until_close, 0); }

  // Takes bytes from the front of `data`, adds their payload to `out` (views into data) and returns
  // how many bytes were taken: fewer than given when the body has ended or `out` is full.
  std::size_t take(std::string_view data, Pieces& out);

  bool done() const { return state_ == State::done; }
  bool bad() const { return state_ == State::bad; }
  bool ends_with_connection() const { return kind_ == Kind::until_close; }
  bool has_length() const { return kind_ == Kind::length; }
  // Payload bytes still to come in this piece (length: in the body).
  std::uint64_t remaining() const { return remaining_; }

 private:
  enum class Kind : std::uint8_t { length, chunked, until_close };
  enum class State : std::uint8_t {
    payload,
    size,       // hex digits of a chunk's size
    extension,  // ";..." after them, ignored
    size_lf,
    payload_cr,
    payload_lf,
    trailer,       // at the start of a trailer line or of the last line
    trailer_line,  // within one, ignored
    trailer_lf,    // after the CR of a trailer line
    last_lf,       // after the CR of the last, empty line
    done,
    bad,
  };
  BodyReader(Kind kind, std::uint64_t bytes);
  std::size_t take_payload(std::string_view data, Pieces& out);
  void step(char c);
  void size_digit(char c);
  void end_of_size();

  Kind kind_;
  State state_;
  std::uint8_t digits_ = 0;
  std::uint32_t ignored_ = 0;  // bytes of extensions and trailers, bounded
  std::uint64_t remaining_;
};

}  // namespace kvl::http
