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

constexpr bool together(std::uint64_t bytes) { return bytes >= kTogether && bytes < kTogetherMax; }

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

// Four pages, two lines of each at a time. The fetch of what comes next is spread over them: all at
// once it would take the buffers that the loads need. `to` is aligned to a line.
[[gnu::target("avx2")]] void stream_together(std::byte* to, const std::byte* from,
                                             const std::byte* next, std::uint64_t next_bytes) {
  constexpr std::uint64_t kPages = kTogether / kPage;
  std::uint64_t fetched = 0;
  for (std::uint64_t line = 0; line < kPage; line += 2 * kLine, ++fetched) {
    const std::uint64_t ahead = fetched % kPages * kPage + fetched / kPages * kLine;
    if (ahead < next_bytes) __builtin_prefetch(next + ahead);
    for (std::uint64_t page = 0; page < kTogether; page += kPage) {
      stream_line(to + page + line, from + page + line);
      stream_line(to + page + line + kLine, from + page + line + kLine);
    }
  }
}

// `to` is aligned to a line; bytes is a multiple of it.
[[gnu::target("avx2")]] void stream_lines(std::byte* to, const std::byte* from, std::uint64_t bytes,
                                          const std::byte* next, std::uint64_t next_bytes) {
  std::uint64_t at = 0;
  if (together(bytes)) {
    for (; at + kTogether <= bytes; at += kTogether) {
      const bool last = at + 2 * kTogether > bytes;
      stream_together(to + at, from + at, last ? next : from + at + kTogether,
                      last ? next_bytes : kTogether);
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
  const std::uint64_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  if (!have_avx2() || bytes < head + kLine) {
    std::memcpy(to, from, bytes);
    return;
  }
  const std::uint64_t lines = (bytes - head) / kLine * kLine;
  if (next == nullptr) next_bytes = 0;
  if (!together(lines)) expect(next, next_bytes);
  std::memcpy(to, from, head);
  stream_lines(to + head, from + head, lines, next, next_bytes);
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
