// Heads and bodies of HTTP messages: split points, refusals, and random bytes.
#include "router/http/head.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "router/http/body.h"

namespace kvl::http {
namespace {

Parse parse(std::string_view text, RequestHead& head) {
  std::size_t scanned = 0;
  return parse_request_head(text, scanned, head);
}
Parse parse(std::string_view text) {
  RequestHead head;
  return parse(text, head);
}

TEST(RequestHead, SplitsAndFindsHeaders) {
  RequestHead head;
  const std::string text =
      "POST /generate?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX-Thing:  v w \r\n\r\n{";
  ASSERT_EQ(parse(text, head), Parse::complete);
  EXPECT_EQ(head.method, "POST");
  EXPECT_EQ(head.path(), "/generate");
  EXPECT_EQ(head.query(), "x=1");
  EXPECT_EQ(head.headers.content_length, 12u);
  EXPECT_EQ(head.headers.find("x-thing"), "v w");
  EXPECT_TRUE(head.headers.keep_alive);
  EXPECT_EQ(head.bytes, text.size() - 1);
}

TEST(RequestHead, ComesByteByByte) {
  const std::string text = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";
  std::size_t scanned = 0;
  RequestHead head;
  for (std::size_t n = 0; n < text.size(); ++n) {
    ASSERT_EQ(parse_request_head(text.substr(0, n), scanned, head), Parse::incomplete) << n;
  }
  EXPECT_EQ(parse_request_head(text, scanned, head), Parse::complete);
}

TEST(RequestHead, KeepAliveFollowsVersionAndConnection) {
  RequestHead head;
  ASSERT_EQ(parse("GET / HTTP/1.0\r\n\r\n", head), Parse::complete);
  EXPECT_FALSE(head.headers.keep_alive);
  ASSERT_EQ(parse("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", head), Parse::complete);
  EXPECT_TRUE(head.headers.keep_alive);
  ASSERT_EQ(parse("GET / HTTP/1.1\r\nConnection: foo, Close\r\n\r\n", head), Parse::complete);
  EXPECT_FALSE(head.headers.keep_alive);
}

TEST(RequestHead, RefusesWhatTwoParsersMightReadInTwoWays) {
  for (const char* text :
       {"GET /\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n", "get\x01 / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nA : b\r\n\r\n", "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: \r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "GET http://x/ HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n", "GET / HTTP/1.1\r\nA: b\nB: c\r\n\r\n",
        "\x16\x03\x01\x02 hello", "GARBAGEGARBAGEGARBAGEGARBAGEGARBAGEGARBAGE"}) {
    EXPECT_EQ(parse(text), Parse::bad) << text;
  }
  EXPECT_EQ(parse("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
            Parse::unsupported);
  EXPECT_EQ(parse("PRI * HTTP/2.0\r\n\r\n"), Parse::bad);
  EXPECT_EQ(parse("GET / HTTP/2.0\r\n\r\n"), Parse::unsupported);
}

TEST(RequestHead, SizesAreBounded) {
  EXPECT_EQ(parse("GET /" + std::string(kHeadBytesMax, 'a')), Parse::too_large);
  std::string many = "GET / HTTP/1.1\r\n";
  for (std::size_t i = 0; i <= kHeadersMax; ++i) many += "A: b\r\n";
  EXPECT_EQ(parse(many + "\r\n"), Parse::too_large);
}

TEST(ResponseHead, SplitsStatusAndLength) {
  ResponseHead head;
  std::size_t scanned = 0;
  const std::string text = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
  ASSERT_EQ(parse_response_head(text, scanned, head), Parse::complete);
  EXPECT_EQ(head.status, 503);
  EXPECT_EQ(head.reason, "Service Unavailable");
  EXPECT_EQ(head.headers.content_length, 0u);
  for (const char* bad : {"HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "SSH-2.0-x\r\n\r\n",
                          "HTTP/1.1 099 x\r\n\r\n"}) {
    scanned = 0;
    EXPECT_EQ(parse_response_head(bad, scanned, head), Parse::bad) << bad;
  }
}

TEST(Body, ChunksAreReadAtEverySplit) {
  const std::string wire = "5;x=y\r\nhello\r\n1\r\n \r\n00A\r\nworld 1234\r\n0\r\nT: v\r\n\r\nNEXT";
  for (std::size_t step = 1; step <= wire.size(); ++step) {
    BodyReader reader = BodyReader::chunked();
    std::string body;
    std::size_t at = 0;
    while (!reader.done() && at < wire.size()) {
      const std::string part = wire.substr(at, step);
      Pieces pieces;
      const std::size_t taken = reader.take(part, pieces);
      ASSERT_FALSE(reader.bad()) << step;
      for (std::size_t i = 0; i < pieces.count; ++i) body += pieces.list[i];
      at += taken;
    }
    EXPECT_EQ(body, "hello world 1234") << step;
    EXPECT_EQ(wire.substr(at), "NEXT") << step;
  }
}

TEST(Body, PiecesAreBoundedAndResume) {
  std::string wire;
  for (int i = 0; i < 100; ++i) wire += "1\r\nx\r\n";
  wire += "0\r\n\r\n";
  BodyReader reader = BodyReader::chunked();
  std::size_t at = 0, bytes = 0, rounds = 0;
  while (!reader.done() && rounds < 100) {
    Pieces pieces;
    at += reader.take(std::string_view(wire).substr(at), pieces);
    bytes += pieces.bytes;
    ++rounds;
  }
  EXPECT_TRUE(reader.done());
  EXPECT_EQ(bytes, 100u);
  EXPECT_EQ(rounds, 100 / Pieces::kMax + 1);
}

TEST(Body, RefusesBadChunks) {
  for (const char* wire : {"x\r\n", "\r\n", "5\nhello", "5\r\nhellox", "fffffffffffffffff\r\n",
                           "-1\r\n", "1\r\na\r\r", "0\r\nA\n", "5 x\n"}) {
    BodyReader reader = BodyReader::chunked();
    Pieces pieces;
    reader.take(wire, pieces);
    EXPECT_TRUE(reader.bad()) << wire;
  }
}

TEST(Body, RandomBytesEndSomewhere) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  constexpr std::string_view kSpice = "0123456789abcdef\r\n;GETHP/1. :";
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    const std::size_t size = random() % 200;
    while (text.size() < size) {
      text += random() % 8 == 0 ? static_cast<char>(random()) : kSpice[random() % kSpice.size()];
    }
    BodyReader reader = BodyReader::chunked();
    Pieces pieces;
    ASSERT_LE(reader.take(text, pieces), text.size());
    ASSERT_LE(pieces.bytes, text.size());
    RequestHead request;
    ResponseHead response;
    std::size_t scanned = 0;
    (void)parse_request_head("GET / HTTP/1.1\r\n" + text + "\r\n\r\n", scanned, request);
    scanned = 0;
    (void)parse_response_head("HTTP/1.1 200 OK\r\n" + text + "\r\n\r\n", scanned, response);
  }
}

}  // namespace
}  // namespace kvl::http
