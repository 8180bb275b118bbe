// The chunked coding: payload does not depend on how the bytes came; and what a reference decoder
// takes for the same message.
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <charconv>
#include <optional>

#include "router/http/body.h"
#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {
namespace {

struct Decoded {
  std::string payload;
  std::size_t taken = 0;
  bool done = false, bad = false;
  friend bool operator==(const Decoded&, const Decoded&) = default;
};

Decoded decode(http::BodyReader reader, std::string_view data, std::size_t step) {
  Decoded out;
  while (!reader.done() && !reader.bad() && out.taken < data.size()) {
    http::Pieces pieces;
    const std::string_view part = data.substr(out.taken, step);
    const std::size_t taken = reader.take(part, pieces);
    require(taken <= part.size() && (taken > 0 || pieces.full()), "a reader goes on");
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < pieces.count; ++i) {
      require(pieces.list[i].data() >= part.data() &&
                  pieces.list[i].data() + pieces.list[i].size() <= part.data() + taken,
              "pieces are views into what was taken");
      out.payload += pieces.list[i];
      bytes += pieces.list[i].size();
    }
    require(bytes == pieces.bytes, "pieces know their bytes");
    out.taken += taken;
  }
  out.done = reader.done();
  out.bad = reader.bad();
  if (out.bad) out.payload.clear(), out.taken = 0;  // how far it got is not part of the answer
  return out;
}

// The grammar by the book: chunks without extensions, no trailers.
std::optional<Decoded> plain_chunks(std::string_view data) {
  Decoded out;
  while (true) {
    const std::string_view rest = data.substr(out.taken);
    const std::size_t digits = rest.find("\r\n");
    if (digits == 0 || digits == std::string_view::npos || digits > 15) return std::nullopt;
    std::uint64_t bytes = 0;
    const char* const end = rest.data() + digits;
    if (std::from_chars(rest.data(), end, bytes, 16).ptr != end) return std::nullopt;
    if (bytes > rest.size() || rest.size() - bytes < digits + 4) return std::nullopt;
    if (rest.substr(digits + 2 + bytes, 2) != "\r\n") return std::nullopt;
    out.payload += rest.substr(digits + 2, bytes);
    out.taken += digits + 4 + bytes;
    if (bytes == 0) break;
  }
  out.done = true;
  return out;
}

// Beast is laxer about line ends in places; what we accept, it must accept, with equal payload.
void compare(std::string_view data, const Decoded& ours) {
  namespace beast = boost::beast::http;
  beast::request_parser<beast::string_body> parser;
  parser.body_limit(1 << 20);
  boost::system::error_code error;
  constexpr std::string_view kHead = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::string whole = std::string(kHead).append(data);
  parser.eager(true);
  std::size_t at = 0;
  while (at < whole.size() && !parser.is_done()) {
    const std::size_t n =
        parser.put(boost::asio::buffer(whole.data() + at, whole.size() - at), error);
    at += n;
    if (error && error != beast::error::need_more) break;
    if (n == 0) break;
  }
  require(parser.is_done(), "a complete chunked body is complete for Beast as well");
  require(parser.get().body() == ours.payload, "and has the same payload");
}

}  // namespace

void fuzz_http_body(Bytes input) {
  if (input.size() < 2) return;
  const std::size_t step = std::to_integer<std::size_t>(input[0]) + 1;
  const std::size_t length = std::to_integer<std::size_t>(input[1]);
  const std::string_view data = text_of(input.subspan(2));
  for (const http::BodyReader& reader :
       {http::BodyReader::chunked(), http::BodyReader::length(length),
        http::BodyReader::until_close()}) {
    const Decoded whole = decode(reader, data, data.size() + 1);
    require(whole == decode(reader, data, step), "a body reads the same in parts");
    if (whole.done && reader.has_length()) require(whole.payload.size() == length, "a length");
  }
  const Decoded chunked = decode(http::BodyReader::chunked(), data, data.size() + 1);
  // Extensions and trailers are read past here and judged by Beast: compared where there are none.
  if (const std::optional<Decoded> plain = plain_chunks(data)) {
    require(chunked == *plain, "a plain chunked body is read as it is meant");
    compare(data.substr(0, plain->taken), *plain);
  }
}

Seeds seeds_http_body() {
  return {seed("\x03\x05"
               "5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"),
          seed("\x07\x01"
               "2;name=value\r\nab\r\n0\r\nTrailer: x\r\n\r\nGET /"),
          seed("\x01\x0a"
               "FFFFFFFFFFFFFFF\r\nx"),
          seed("\x02\x04"
               "abcd")};
}

}  // namespace kvl::fuzz
