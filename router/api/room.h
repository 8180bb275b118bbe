// Names of transfer sessions: 63-bit numbers, unique over routers (random high bits) and over time.
#pragma once

#include <atomic>
#include <cstdint>

namespace kvl::router {

class RoomAllocator {
 public:
  // Two routers with different seeds share no room, as far as 23 bits can tell them apart.
  explicit RoomAllocator(std::uint64_t seed) : high_((seed & kHighMask) << kLowBits) {}

  // `count` consecutive rooms, the first of which is returned; a worker that is given one room for
  // a batch uses room + i for its i-th sequence. Never 0, which workers take for "none". Any
  // thread.
  std::uint64_t reserve(std::uint64_t count) {
    return high_ | (next_.fetch_add(count, std::memory_order_relaxed) & kLowMask);
  }

 private:
  static constexpr int kLowBits = 40;  // at 100,000 rooms a second: four months until they wrap
  static constexpr std::uint64_t kLowMask = (1ull << kLowBits) - 1;
  static constexpr std::uint64_t kHighMask = (1ull << (63 - kLowBits)) - 1;
  const std::uint64_t high_;
  std::atomic<std::uint64_t> next_{1};
};

}  // namespace kvl::router
