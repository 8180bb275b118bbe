// Heads of requests and responses: the outcome does not depend on how the bytes came, and what is
// split stays inside them.
#include "router/http/head.h"
#include "tests/fuzz/fuzz.h"

namespace kvl::fuzz {
namespace {

using namespace http;

bool inside(std::string_view whole, std::string_view part) {
  return part.empty() ||
         (part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size());
}

void check_headers(std::string_view data, const Headers& headers) {
  require(headers.count <= kHeadersMax, "headers are bounded");
  for (const Header& header : headers.all()) {
    require(!header.name.empty() && inside(data, header.name) && inside(data, header.value),
            "headers are views into the head");
    require(header.value.find_first_of(std::string_view("\r\n\0", 3)) == std::string_view::npos,
            "no line ends in a value");
  }
  require(!headers.chunked || !headers.content_length, "one framing only");
}

// Fed in steps, as a connection does: stops with the first outcome that is not `incomplete`.
template <typename Head>
Parse in_steps(std::string_view data, std::size_t step, Head& head,
               Parse (*parse)(std::string_view, std::size_t&, Head&)) {
  std::size_t scanned = 0;
  for (std::size_t have = step;; have += step) {
    const Parse parsed = parse(data.substr(0, std::min(have, data.size())), scanned, head);
    if (parsed != Parse::incomplete || have >= data.size()) return parsed;
  }
}

template <typename Head>
void check(std::string_view data, std::size_t step,
           Parse (*parse)(std::string_view, std::size_t&, Head&)) {
  Head whole, stepped;
  std::size_t scanned = 0;
  const Parse parsed = parse(data, scanned, whole);
  const Parse later = in_steps(data, step, stepped, parse);
  require(parsed == later, "a head reads the same in parts");
  if (parsed != Parse::complete) return;
  require(whole.bytes == stepped.bytes && whole.bytes <= data.size(), "and ends at one place");
  require(whole.bytes <= kHeadBytesMax, "heads are bounded");
  check_headers(data.substr(0, whole.bytes), whole.headers);
  require(whole.headers.count == stepped.headers.count, "and has the same headers");
}

}  // namespace

void fuzz_http_head(Bytes input) {
  if (input.empty()) return;
  const std::size_t step = std::to_integer<std::size_t>(input[0]) + 1;
  const std::string_view data = text_of(input.subspan(1));
  check<RequestHead>(data, step, parse_request_head);
  check<ResponseHead>(data, step, parse_response_head);
  RequestHead head;
  std::size_t scanned = 0;
  if (parse_request_head(data, scanned, head) != Parse::complete) return;
  require(head.target.starts_with('/') && head.target.find(' ') == std::string_view::npos,
          "a target is a path");
  require(head.path().size() + (head.query().empty() ? 0 : 1) + head.query().size() <=
              head.target.size(),
          "path and query are parts of the target");
}

Seeds seeds_http_head() {
  return {
      seed("\x05POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n"
           "Connection: keep-alive, close\r\nExpect: 100-continue\r\n\r\n{\"a\":1}"),
      seed("\x01GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
      seed("\x20HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
      seed("\x02PUT /route HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"),
      seed("\x03HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n")};
}

}  // namespace kvl::fuzz
