// A 64-bit mixer: the one source of pseudo-random bits in the reference engine.
#pragma once

#include <cstdint>

namespace kvl::worker {

// The finaliser of splitmix64 (Steele, Lea, Flood 2014) over a Weyl step: a bijection whose output
// bits each depend on every input bit.
constexpr std::uint64_t mix64(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15ULL;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

}  // namespace kvl::worker
