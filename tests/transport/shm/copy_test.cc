// The copy past the caches is a copy: any size, any alignment, nothing beside it.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "transport/shm/shm_copy.h"

namespace kvl::shm {
namespace {

constexpr std::size_t kEdge = 256;

// Copies `bytes` from `from_at` to `to_at` behind an edge and compares all of the destination.
void check(std::size_t from_at, std::size_t to_at, std::size_t bytes, std::mt19937_64& random) {
  std::vector<std::byte> from(from_at + bytes + kEdge), to(to_at + bytes + kEdge);
  for (std::byte& b : from) b = static_cast<std::byte>(random());
  for (std::byte& b : to) b = static_cast<std::byte>(random());
  std::vector<std::byte> expected = to;
  std::memcpy(expected.data() + to_at, from.data() + from_at, bytes);
  copy_streaming(to.data() + to_at, from.data() + from_at, bytes, from.data(), from.size());
  streamed();
  ASSERT_EQ(to, expected) << "from " << from_at << " to " << to_at << " bytes " << bytes;
}

TEST(ShmCopy, SizesAroundEveryBorder) {
  std::mt19937_64 random(1);
  for (const std::size_t size : {0UL, 64UL, 4096UL, 16384UL, 32768UL, 65536UL, 262144UL}) {
    for (const int off : {-65, -1, 0, 1, 63, 64, 65}) {
      const auto bytes = static_cast<std::int64_t>(size) + off;
      if (bytes >= 0) check(kEdge, kEdge, static_cast<std::size_t>(bytes), random);
    }
  }
}

TEST(ShmCopy, RandomPlaces) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int i = 0; i < 300; ++i) {
    check(random() % kEdge, random() % kEdge, random() % (96 << 10), random);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace kvl::shm
