// Contents that say where they came from: every byte of an arena is a function of a seed and its
// offset, so that a page in a wrong place is as visible as a broken one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvl::bench {

// Writes the pattern of positions [offset, offset + bytes.size()).
void fill_pattern(std::span<std::byte> bytes, std::uint64_t seed, std::uint64_t offset);
// How many bytes differ from it. `first_wrong` (optional) receives the index in `bytes`.
std::uint64_t count_wrong(std::span<const std::byte> bytes, std::uint64_t seed,
                          std::uint64_t offset, std::uint64_t* first_wrong = nullptr);

// `bytes` at `offset` of the arena under check are expected to be those at `from` of the other.
struct MovedPiece {
  std::uint64_t offset = 0;
  std::uint64_t from = 0;
  std::uint64_t bytes = 0;
};

struct CheckResult {
  std::uint64_t wrong_bytes = 0;
  std::uint64_t first_offset = 0;  // of the arena; meaningful when wrong_bytes > 0
  bool inside_page = false;        // the first wrong byte lies in a moved piece, not in a guard
};

// Whether the arena, filled with `own_seed` before, holds exactly the moved pieces of an arena that
// was filled with `other_seed`, and its old bytes everywhere else. Sorts `pieces`.
CheckResult check_arena(std::span<const std::byte> arena, std::uint64_t own_seed,
                        std::uint64_t other_seed, std::vector<MovedPiece> pieces);

}  // namespace kvl::bench
