// Control messages: round trips, and hostile bytes that never crash a decoder.
#include "transport/core/handshake.h"

#include <gtest/gtest.h>

#include <random>

namespace kvl::control {
namespace {

Hello sample() {
  Hello hello;
  hello.id[3] = std::byte{7};
  hello.epoch = 42;
  hello.address = "[::1]:4711";
  hello.pid = 99;
  hello.rails = {{"tcp", "host", "ip"}, {"shm", "host", "boot/0"}};
  return hello;
}

std::span<const std::byte> body(const std::vector<std::byte>& message) {
  return std::span(message).subspan(1);
}

TEST(Handshake, HelloRoundTrip) {
  const auto bytes = encode(sample());
  const auto decoded = decode_hello(body(bytes));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->epoch, 42U);
  EXPECT_EQ(decoded->address, "[::1]:4711");
  ASSERT_EQ(decoded->rails.size(), 2U);
  EXPECT_EQ(decoded->rails[1].domain, "boot/0");
}

TEST(Handshake, OtherVersionIsUnsupportedNotMalformed) {
  auto bytes = encode(sample());
  bytes[5] = std::byte{9};
  EXPECT_EQ(decode_hello(body(bytes)).code(), Code::unsupported);
}

TEST(Handshake, ExportRoundTrip) {
  const std::vector<std::byte> blob(5, std::byte{1});
  const auto bytes = encode_export({1, 2, 3}, 77, blob);
  const auto decoded = decode_export(body(bytes));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->handle, 77U);
  EXPECT_EQ(decoded->pair.incarnation, 3U);
  EXPECT_EQ(decoded->blob.size(), 5U);
}

TEST(Handshake, MutatedMessagesAreRefusedOrDecodedNeverWorse) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::vector<std::vector<std::byte>> messages = {
      encode(sample()), encode(Type::rail_offer, {1, 2, 3}, std::vector<std::byte>(40)),
      encode_export({0, 0, 1}, 5, std::vector<std::byte>(40)), encode_memory(Type::memory_add, 1)};
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    auto bytes = messages[random() % messages.size()];
    for (std::uint64_t flips = 1 + random() % 4; flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    bytes.resize(1 + random() % bytes.size());
    refused += !decode_hello(body(bytes)).ok();
    refused += !decode_pair(body(bytes)).ok();
    refused += !decode_export(body(bytes)).ok();
    refused += !decode_memory(body(bytes)).ok();
  }
  EXPECT_GT(refused, 60000);
}

}  // namespace
}  // namespace kvl::control
