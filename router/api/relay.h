// The answer on its way to the client: the worker's head and payload, framed anew, never gathered.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "router/http/body.h"
#include "router/http/head.h"
#include "router/http/session.h"

namespace kvl::router {

class Relay {
 public:
  explicit Relay(http::Session& session) : session_(session) {}

  // The head waits for the first payload: one write less, and until then another worker may answer.
  void begin(const http::ResponseHead& head);
  bool begun() const { return !head_.empty(); }
  // The client has got, or is getting, bytes of the answer.
  bool started() const { return started_; }

  // Writes payload; the pieces stay valid until it is out (http::Session::write()).
  http::Output::Outcome write(const http::Pieces& pieces, bool last);

  // The worker died in the middle. A stream of events gets a last event that says so, and a correct
  // end; anything else can only be cut off.
  http::Output::Outcome write_break(int status, std::string_view message);

  // After the last write: the client's connection may carry another request.
  bool reusable() const { return reusable_; }

 private:
  enum class Framing : std::uint8_t { length, chunked, until_close };
  void note_tail(const http::Pieces& pieces);

  http::Session& session_;
  Framing framing_ = Framing::length;
  bool started_ = false;
  bool reusable_ = true;
  bool events_ = false;
  std::array<char, 2> tail_{'\n',
                            '\n'};  // the last payload bytes: between two events or within one
  std::string head_;
  std::string chunk_;
};

}  // namespace kvl::router
