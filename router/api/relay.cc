// Heads, chunks and the end of a broken stream.
#include "router/api/relay.h"

#include <charconv>

#include "router/api/forward.h"
#include "router/http/message.h"

namespace kvl::router {

using http::Output;
using http::Parts;
using http::Pieces;

namespace {

std::string chunk_size_line(std::size_t bytes) {
  char digits[16];
  char* const end = std::to_chars(digits, digits + sizeof(digits), bytes, 16).ptr;
  return std::string(digits, static_cast<std::size_t>(end - digits)).append("\r\n");
}

}  // namespace

void Relay::begin(const http::ResponseHead& head) {
  head_ = forward_response_head(head);
  events_ = head.headers.find("content-type").starts_with("text/event-stream");
  const bool bodiless = head.status == 204 || head.status == 304;
  if (head.headers.content_length.has_value() || bodiless) {
    framing_ = Framing::length;
    if (!bodiless) {
      head_.append("Content-Length: ");
      head_.append(std::to_string(*head.headers.content_length)).append("\r\n");
    }
  } else if (session_.request().http_1_0) {
    framing_ = Framing::until_close;
    reusable_ = false;
  } else {
    framing_ = Framing::chunked;
    head_.append("Transfer-Encoding: chunked\r\n");
  }
  if (!session_.keep_alive()) reusable_ = false;
  if (!reusable_) head_.append("Connection: close\r\n");
  head_.append("\r\n");
}

Output::Outcome Relay::write(const Pieces& pieces, bool last) {
  Parts parts;
  if (!started_) parts.add(head_);
  started_ = true;
  if (framing_ == Framing::chunked) {
    chunk_ = chunk_size_line(pieces.bytes);
    if (pieces.bytes > 0) parts.add(chunk_);
  }
  for (std::size_t i = 0; i < pieces.count; ++i) parts.add(pieces.list[i]);
  if (framing_ == Framing::chunked) {
    if (pieces.bytes > 0) parts.add("\r\n");
    if (last) parts.add("0\r\n\r\n");
  }
  note_tail(pieces);
  return session_.write(parts);
}

void Relay::note_tail(const Pieces& pieces) {
  if (!events_ || pieces.count == 0) return;
  for (std::size_t i = 0; i < pieces.count; ++i) {
    const std::string_view piece = pieces.list[i];
    tail_[0] = piece.size() > 1 ? piece[piece.size() - 2] : tail_[1];
    tail_[1] = piece.back();
  }
}

Output::Outcome Relay::write_break(int status, std::string_view message) {
  if (!events_ || framing_ == Framing::length) return Output::Outcome::failed;
  // An event that was cut is ended first, so that the error is an event of its own.
  std::string text = tail_[0] == '\n' && tail_[1] == '\n' ? "" : "\n\n";
  text += "data: " + http::error_body(status, "upstream_error", message) + "\n\ndata: [DONE]\n\n";
  // chunk_ holds all of it: the write may stay pending.
  if (framing_ == Framing::chunked) {
    chunk_ = chunk_size_line(text.size()).append(text).append("\r\n0\r\n\r\n");
  } else {
    chunk_ = std::move(text);
  }
  Parts parts;
  parts.add(chunk_);
  return session_.write(parts);
}

}  // namespace kvl::router
