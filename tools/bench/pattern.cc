// Filling and checking arenas.
#include "tools/bench/pattern.h"

#include <algorithm>
#include <cstring>

#include "bench/support/stats.h"

namespace kvl::bench {
namespace {

std::uint64_t word(std::uint64_t seed, std::uint64_t index) {
  return SplitMix::mix(seed * 0x9e3779b97f4a7c15U + index);
}

// Calls visit(position in bytes, 8 pattern bytes, first of them to use, count) over the range.
template <typename Visit>
void for_each_word(std::uint64_t size, std::uint64_t seed, std::uint64_t offset, Visit visit) {
  std::uint64_t at = 0;
  while (at < size) {
    const std::uint64_t position = offset + at;
    const std::uint64_t skip = position % 8;
    const std::uint64_t take = std::min<std::uint64_t>(8 - skip, size - at);
    const std::uint64_t value = word(seed, position / 8);
    visit(at, value, skip, take);
    at += take;
  }
}

}  // namespace

void fill_pattern(std::span<std::byte> bytes, std::uint64_t seed, std::uint64_t offset) {
  for_each_word(bytes.size(), seed, offset,
                [&](std::uint64_t at, std::uint64_t value, std::uint64_t skip, std::uint64_t take) {
                  std::memcpy(bytes.data() + at, reinterpret_cast<const char*>(&value) + skip,
                              take);
                });
}

std::uint64_t count_wrong(std::span<const std::byte> bytes, std::uint64_t seed,
                          std::uint64_t offset, std::uint64_t* first_wrong) {
  std::uint64_t wrong = 0;
  for_each_word(bytes.size(), seed, offset,
                [&](std::uint64_t at, std::uint64_t value, std::uint64_t skip, std::uint64_t take) {
                  std::uint64_t got = 0;
                  std::memcpy(&got, bytes.data() + at, take);
                  std::uint64_t want = 0;
                  std::memcpy(&want, reinterpret_cast<const char*>(&value) + skip, take);
                  if (got == want) return;
                  for (std::uint64_t i = 0; i < take; ++i) {
                    if (((got ^ want) >> (8 * i) & 0xff) == 0) continue;
                    if (wrong++ == 0 && first_wrong != nullptr) *first_wrong = at + i;
                  }
                });
  return wrong;
}

CheckResult check_arena(std::span<const std::byte> arena, std::uint64_t own_seed,
                        std::uint64_t other_seed, std::vector<MovedPiece> pieces) {
  std::sort(pieces.begin(), pieces.end(),
            [](const MovedPiece& a, const MovedPiece& b) { return a.offset < b.offset; });
  CheckResult result;
  const auto check = [&](std::uint64_t offset, std::uint64_t bytes, std::uint64_t seed,
                         std::uint64_t from, bool inside_page) {
    std::uint64_t first = 0;
    const std::uint64_t wrong = count_wrong(arena.subspan(offset, bytes), seed, from, &first);
    if (wrong > 0 && result.wrong_bytes == 0) {
      result.first_offset = offset + first;
      result.inside_page = inside_page;
    }
    result.wrong_bytes += wrong;
  };
  std::uint64_t at = 0;
  for (const MovedPiece& piece : pieces) {
    check(at, piece.offset - at, own_seed, at, false);
    check(piece.offset, piece.bytes, other_seed, piece.from, true);
    at = piece.offset + piece.bytes;
  }
  check(at, arena.size() - at, own_seed, at, false);
  return result;
}

}  // namespace kvl::bench
