#include "transport/shm/shm_copy.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvl::shm {

#if defined(__x86_64__)
namespace {

constexpr std::uint64_t kLine = 64, kPage = 4096;
// Between these sizes four pages advance together: the prefetchers of the CPU stop at each 4 KiB
// and need some lines to start anew, and four of them start at once. Larger pieces give them time.
constexpr std::uint64_t kTogether = 4 * kPage, kTogetherMax = 64 << 10;

[[gnu::target("avx2")]] inline void stream_line(std::byte* to, const std::byte* from) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + kLine / 2));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), low);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to + kLine / 2), high);
}

// Begins the fetch of the first lines of each of the first pages. Inlined by force: GCC 12 takes a
// function of nothing but prefetches for one without effects and drops its calls.
[[gnu::always_inline]] inline void expect(const std::byte* from, std::uint64_t bytes) {
  constexpr std::uint64_t kPages = 4, kLines = 8;
  for (std::uint64_t page = 0; page < std::min(bytes, kPages * kPage); page += kPage) {
    const std::uint64_t lines = std::min(bytes - page, kLines * kLine);
    for (std::uint64_t line = 0; line < lines; line += kLine) {
      __builtin_prefetch(from + page + line);
    }
  }
}

// `to` is aligned to a line; bytes is a multiple of it.
[[gnu::target("avx2")]] void stream_lines(std::byte* to, const std::byte* from,
                                          std::uint64_t bytes) {
  std::uint64_t at = 0;
  if (bytes >= kTogether && bytes < kTogetherMax) {
    for (; at + kTogether <= bytes; at += kTogether) {
      for (std::uint64_t line = at; line < at + kPage; line += kLine) {
        for (std::uint64_t page = 0; page < kTogether; page += kPage) {
          stream_line(to + line + page, from + line + page);
        }
      }
    }
  }
  for (; at < bytes; at += kLine) stream_line(to + at, from + at);
}

bool have_avx2() {
  static const bool have = __builtin_cpu_supports("avx2") != 0;
  return have;
}

}  // namespace

void copy_streaming(std::byte* to, const std::byte* from, std::uint64_t bytes,
                    const std::byte* next, std::uint64_t next_bytes) {
  if (next != nullptr) expect(next, next_bytes);
  const std::uint64_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  if (!have_avx2() || bytes < head + kLine) {
    std::memcpy(to, from, bytes);
    return;
  }
  std::memcpy(to, from, head);
  const std::uint64_t lines = (bytes - head) / kLine * kLine;
  stream_lines(to + head, from + head, lines);
  std::memcpy(to + head + lines, from + head + lines, bytes - head - lines);
}

void streamed() { _mm_sfence(); }

#else

void copy_streaming(std::byte* to, const std::byte* from, std::uint64_t bytes, const std::byte*,
                    std::uint64_t) {
  std::memcpy(to, from, bytes);
}

void streamed() {}

#endif

}  // namespace kvl::shm
