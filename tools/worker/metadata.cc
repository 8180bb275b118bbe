// The metadata of a handoff's commit.
#include "worker/metadata.h"

#include <time.h>

#include <bit>

namespace kvl::worker {
namespace {

constexpr std::size_t kBytes = 32;
constexpr std::uint64_t kVersion = 1;

void put(std::vector<std::byte>& out, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<std::byte>(value >> (8 * i)));
}

std::uint64_t get(std::span<const std::byte> in, std::size_t at, std::size_t bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < bytes; ++i) {
    value |= static_cast<std::uint64_t>(in[at + i]) << (8 * i);
  }
  return value;
}

}  // namespace

std::int64_t wall_clock_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

std::vector<std::byte> encode_metadata(const OutputToken& token) {
  std::vector<std::byte> bytes;
  put(bytes, kVersion, 4);
  put(bytes, static_cast<std::uint32_t>(token.token), 4);
  put(bytes, std::bit_cast<std::uint32_t>(token.logprob), 4);
  put(bytes, 0, 4);
  put(bytes, token.digest, 8);
  put(bytes, static_cast<std::uint64_t>(wall_clock_ns()), 8);
  return bytes;
}

std::optional<FirstToken> decode_metadata(std::span<const std::byte> bytes) {
  if (bytes.size() != kBytes || get(bytes, 0, 4) != kVersion) return std::nullopt;
  FirstToken first;
  first.token.token = static_cast<std::int32_t>(get(bytes, 4, 4));
  first.token.logprob = std::bit_cast<float>(static_cast<std::uint32_t>(get(bytes, 8, 4)));
  first.token.digest = get(bytes, 16, 8);
  first.wall_ns = static_cast<std::int64_t>(get(bytes, 24, 8));
  return first;
}

}  // namespace kvl::worker
