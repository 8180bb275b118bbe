// CRC-32C against the published vectors and the two implementations against each other.
#include "transport/base/crc32c.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string_view>
#include <vector>

namespace kvl {
namespace {

std::vector<std::byte> random_bytes(std::size_t size, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// RFC 3720, appendix B.4, and the check value of the CRC catalogue.
TEST(Crc32c, PublishedVectors) {
  std::vector<std::byte> data(32, std::byte{0});
  EXPECT_EQ(crc32c(data), 0x8a9136aaU);
  data.assign(32, std::byte{0xff});
  EXPECT_EQ(crc32c(data), 0x62a8ab43U);
  for (std::size_t i = 0; i < 32; ++i) data[i] = static_cast<std::byte>(i);
  EXPECT_EQ(crc32c(data), 0x46dd794eU);
  for (std::size_t i = 0; i < 32; ++i) data[i] = static_cast<std::byte>(31 - i);
  EXPECT_EQ(crc32c(data), 0x113fdb5cU);
  const std::string_view digits = "123456789";
  EXPECT_EQ(crc32c(std::as_bytes(std::span(digits))), 0xe3069283U);
  EXPECT_EQ(crc32c_portable(std::as_bytes(std::span(digits))), 0xe3069283U);
  EXPECT_EQ(crc32c({}), 0U);
}

TEST(Crc32c, EveryKindAgreesAtEveryLengthAndOffset) {
  const auto bytes = random_bytes(40000, 11);
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  ASSERT_EQ(crc32c_kinds().back().name, "tables");
  for (const Crc32cKind& kind : crc32c_kinds()) {
    SCOPED_TRACE(kind.name);
    for (std::size_t length = 0; length < 1200; ++length) {
      const auto part = std::span(bytes).subspan(length % 65, length);
      ASSERT_EQ(kind.run(part, 0), crc32c_portable(part)) << length;
    }
    std::mt19937 random(seed);
    for (int i = 0; i < 400; ++i) {
      const std::size_t from = random() % 8000, length = random() % 32000;
      const auto part = std::span(bytes).subspan(from, length);
      const auto start = static_cast<std::uint32_t>(random());
      ASSERT_EQ(kind.run(part, start), crc32c_portable(part, start)) << from << " " << length;
    }
  }
}

TEST(Crc32c, GoesOnWhereItStopped) {
  const auto bytes = random_bytes(30000, 13);
  const std::uint32_t whole = crc32c(bytes);
  for (const std::size_t cut : {0U, 1U, 7U, 255U, 12288U, 29999U, 30000U}) {
    const auto all = std::span(bytes);
    EXPECT_EQ(crc32c(all.subspan(cut), crc32c(all.first(cut))), whole) << cut;
  }
}

TEST(Crc32c, StridedIsTheConcatenation) {
  const auto bytes = random_bytes(10000, 14);
  std::vector<std::byte> joined;
  for (std::size_t i = 0; i < 9; ++i) {
    joined.insert(joined.end(), bytes.begin() + static_cast<std::ptrdiff_t>(100 + i * 1000),
                  bytes.begin() + static_cast<std::ptrdiff_t>(100 + i * 1000 + 333));
  }
  EXPECT_EQ(crc32c_strided(bytes.data() + 100, 333, 9, 1000), crc32c(joined));
}

}  // namespace
}  // namespace kvl
