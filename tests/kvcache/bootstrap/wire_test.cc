// The rendezvous' wire form: round trips, bounds, base64.
#include "kvcache/bootstrap/wire.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "kvcache/bootstrap/base64.h"
#include "kvcache/bootstrap/http_call.h"

namespace kvl::bootstrap {
namespace {

TEST(Base64, RoundTripsAndRefusesOtherSpellings) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (std::size_t size = 0; size < 200; ++size) {
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    const std::string text = encode_base64(bytes);
    ASSERT_EQ(decode_base64(text), bytes);
  }
  EXPECT_EQ(encode_base64(std::as_bytes(std::span("foobar", 5))), "Zm9vYmE=");
  for (const char* wrong : {"Z", "Zg", "Zg=", "Zh==", "Z===", "====", "Zg==Zg==", "Zm 9", "Zm9-"}) {
    EXPECT_FALSE(decode_base64(wrong).has_value()) << wrong;
  }
}

TEST(Wire, EpochsUseAll64Bits) {
  RankRecord record;
  record.instance = "i\"\\\xc3\xa9";
  record.address = "[::1]:1";
  record.epoch = ~0ull;
  const auto decoded = decode_register(encode_register(record, 7));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->record.epoch, ~0ull);
  EXPECT_EQ(decoded->record.instance, record.instance);
  EXPECT_EQ(decoded->lease_ms, 7u);
  EXPECT_EQ(epoch_of(encode_record(record)), ~0ull);
  EXPECT_EQ(epoch_of("nonsense"), 0u);
}

TEST(Wire, RecordsAreBounded) {
  RankRecord record;
  record.instance = "i";
  record.address = "a:1";
  EXPECT_TRUE(check_record(record).ok());
  record.layout.resize(kLayoutBytesMax);
  EXPECT_TRUE(decode_register(encode_register(record, 1)).ok());
  record.layout.resize(kLayoutBytesMax + 1);
  EXPECT_EQ(decode_register(encode_register(record, 1)).code(), Code::invalid_argument);
  record.layout.clear();
  record.instance = std::string(kNameBytesMax + 1, 'i');
  EXPECT_EQ(check_record(record).code(), Code::invalid_argument);
  record.instance = "a\nb";
  EXPECT_EQ(check_record(record).code(), Code::invalid_argument);
}

TEST(Wire, ListsAreReadWholeOrNotAtAll) {
  RankRecord record;
  record.instance = "i";
  record.address = "a:1";
  EXPECT_EQ(decode_ranks(encode_ranks({}))->size(), 0u);
  EXPECT_EQ(decode_ranks(encode_ranks({encode_record(record), encode_record(record)}))->size(), 2u);
  EXPECT_EQ(decode_ranks(encode_ranks({"{}"})).code(), Code::invalid_argument);
  EXPECT_EQ(decode_ranks(R"({"version":2,"ranks":[]})").code(), Code::unsupported);
  EXPECT_EQ(decode_ranks("").code(), Code::invalid_argument);
  EXPECT_EQ(decode_ranks(std::string(100000, '[')).code(), Code::invalid_argument);
}

TEST(Target, IsAUrlOfHostAndPort) {
  EXPECT_EQ(parse_target("http://[::1]:80/")->host, "::1");
  EXPECT_EQ(parse_target("http://h:8998")->port, "8998");
  for (const char* wrong : {"", "h:1", "ftp://h:1", "http://h", "http://:1",
                            "http://h:", "http://h:1x", "http://h:123456", "http://h/x:1"}) {
    EXPECT_EQ(parse_target(wrong).code(), Code::invalid_argument) << wrong;
  }
}

}  // namespace
}  // namespace kvl::bootstrap
