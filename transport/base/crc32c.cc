// CRC-32C by carry-less multiplication over 512 bits, by SSE 4.2 in three interleaved streams, or
// by slicing over eight tables: the best that the CPU has.
#include "transport/base/crc32c.h"

#include <array>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvl {
namespace {

constexpr std::uint32_t kPolynomial = 0x82f63b78;  // 0x1edc6f41 reflected

using Table = std::array<std::uint32_t, 256>;

// tables[k][b]: the CRC register after byte b and k zero bytes.
constexpr std::array<Table, 8> make_slicing_tables() {
  std::array<Table, 8> tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? kPolynomial : 0U);
    tables[0][i] = crc;
  }
  for (std::size_t k = 1; k < tables.size(); ++k) {
    for (std::size_t i = 0; i < 256; ++i) {
      tables[k][i] = (tables[k - 1][i] >> 8) ^ tables[0][tables[k - 1][i] & 0xffU];
    }
  }
  return tables;
}
constexpr std::array<Table, 8> kSlicing = make_slicing_tables();

std::uint64_t load_u64(const std::byte* from) {
  std::uint64_t value = 0;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

#if defined(__x86_64__)

// A linear map over GF(2): column i is what bit i becomes.
using Matrix = std::array<std::uint32_t, 32>;

constexpr std::uint32_t apply(const Matrix& matrix, std::uint32_t vector) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; vector != 0; ++i, vector >>= 1) {
    if ((vector & 1U) != 0) sum ^= matrix[i];
  }
  return sum;
}

// What the register becomes over `bytes` zero bytes (a power of two), one table per register byte:
// the three streams of a block are joined by it.
constexpr std::array<Table, 4> make_shift_tables(std::size_t bytes) {
  Matrix step{};  // one zero bit
  step[0] = kPolynomial;
  for (std::size_t i = 1; i < 32; ++i) step[i] = std::uint32_t{1} << (i - 1);
  for (std::size_t bits = bytes * 8; bits > 1; bits /= 2) {
    Matrix square{};
    for (std::size_t i = 0; i < 32; ++i) square[i] = apply(step, step[i]);
    step = square;
  }
  std::array<Table, 4> tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    for (std::uint32_t k = 0; k < 4; ++k) tables[k][i] = apply(step, i << (8 * k));
  }
  return tables;
}
constexpr std::size_t kLong = 4096, kShort = 256;  // bytes per stream
constexpr std::array<Table, 4> kShiftLong = make_shift_tables(kLong);
constexpr std::array<Table, 4> kShiftShort = make_shift_tables(kShort);

std::uint32_t shift(const std::array<Table, 4>& tables, std::uint32_t crc) {
  return tables[0][crc & 0xffU] ^ tables[1][(crc >> 8) & 0xffU] ^ tables[2][(crc >> 16) & 0xffU] ^
         tables[3][crc >> 24];
}

// The instruction takes three cycles but one starts in each: three independent streams keep it
// busy.
__attribute__((target("sse4.2"))) const std::byte* three_streams(
    const std::byte* data, std::size_t& left, std::uint64_t& crc, std::size_t stream,
    const std::array<Table, 4>& tables) {
  while (left >= 3 * stream) {
    std::uint64_t second = 0, third = 0;
    for (const std::byte* const end = data + stream; data != end; data += 8) {
      crc = _mm_crc32_u64(crc, load_u64(data));
      second = _mm_crc32_u64(second, load_u64(data + stream));
      third = _mm_crc32_u64(third, load_u64(data + 2 * stream));
    }
    crc = shift(tables, static_cast<std::uint32_t>(crc)) ^ second;
    crc = shift(tables, static_cast<std::uint32_t>(crc)) ^ third;
    data += 2 * stream;
    left -= 3 * stream;
  }
  return data;
}

__attribute__((target("sse4.2"))) std::uint32_t crc32c_sse42(std::span<const std::byte> bytes,
                                                             std::uint32_t start) {
  const std::byte* data = bytes.data();
  std::size_t left = bytes.size();
  std::uint64_t crc = ~start;
  data = three_streams(data, left, crc, kLong, kShiftLong);
  data = three_streams(data, left, crc, kShort, kShiftShort);
  for (; left >= 8; left -= 8, data += 8) crc = _mm_crc32_u64(crc, load_u64(data));
  auto tail = static_cast<std::uint32_t>(crc);
  for (; left > 0; --left, ++data) tail = _mm_crc32_u8(tail, static_cast<std::uint8_t>(*data));
  return ~tail;
}

// x to the power of `bits`, modulo the polynomial; the highest bit is the constant term.
constexpr std::uint32_t power_of_x(std::uint32_t bits) {
  std::uint32_t value = std::uint32_t{1} << 31;
  for (; bits > 0; --bits) value = (value >> 1) ^ ((value & 1U) != 0 ? kPolynomial : 0U);
  return value;
}
// What moves the low and the high half of 128 bits `bytes` further on. A product of reflected
// numbers is one bit short, hence 31 and 33 instead of 32.
constexpr long long fold_low(std::uint32_t bytes) { return power_of_x(bytes * 8 + 31); }
constexpr long long fold_high(std::uint32_t bytes) { return power_of_x(bytes * 8 - 33); }
constexpr long long kLow16 = fold_low(16), kHigh16 = fold_high(16);
constexpr long long kLow32 = fold_low(32), kHigh32 = fold_high(32);
constexpr long long kLow48 = fold_low(48), kHigh48 = fold_high(48);
constexpr long long kLow64 = fold_low(64), kHigh64 = fold_high(64);
constexpr long long kLow256 = fold_low(256), kHigh256 = fold_high(256);

#define KVL_WIDE __attribute__((target("avx512f,avx512vl,avx512bw,vpclmulqdq,pclmul,sse4.2")))

KVL_WIDE inline __m512i fold(__m512i sum, __m512i by, __m512i next) {
  const __m512i low = _mm512_clmulepi64_epi128(sum, by, 0x00);
  const __m512i high = _mm512_clmulepi64_epi128(sum, by, 0x11);
  return _mm512_ternarylogic_epi64(low, high, next, 0x96);  // exclusive or of the three
}

// Four sums of 64 bytes, 256 bytes at a time (Gopal et al., "Fast CRC Computation Using
// PCLMULQDQ"); the last 128 bits go through the CRC instruction.
KVL_WIDE std::uint32_t crc32c_wide(std::span<const std::byte> bytes, std::uint32_t start) {
  const std::byte* data = bytes.data();
  std::size_t left = bytes.size();
  std::uint64_t crc = ~start;
  if (left >= 256) {
    const __m512i by256 = _mm512_set_epi64(kHigh256, kLow256, kHigh256, kLow256, kHigh256, kLow256,
                                           kHigh256, kLow256);
    const __m512i by64 =
        _mm512_set_epi64(kHigh64, kLow64, kHigh64, kLow64, kHigh64, kLow64, kHigh64, kLow64);
    const __m512i first = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(~start)));
    __m512i a = _mm512_xor_si512(_mm512_loadu_si512(data), first);
    __m512i b = _mm512_loadu_si512(data + 64);
    __m512i c = _mm512_loadu_si512(data + 128);
    __m512i d = _mm512_loadu_si512(data + 192);
    for (data += 256, left -= 256; left >= 256; data += 256, left -= 256) {
      a = fold(a, by256, _mm512_loadu_si512(data));
      b = fold(b, by256, _mm512_loadu_si512(data + 64));
      c = fold(c, by256, _mm512_loadu_si512(data + 128));
      d = fold(d, by256, _mm512_loadu_si512(data + 192));
    }
    a = fold(fold(fold(a, by64, b), by64, c), by64, d);
    for (; left >= 64; data += 64, left -= 64) a = fold(a, by64, _mm512_loadu_si512(data));
    // The four quarters, each moved to the last one's place; that one stays.
    const __m512i to_last =
        _mm512_set_epi64(0, 0, kHigh16, kLow16, kHigh32, kLow32, kHigh48, kLow48);
    const __m512i moved = fold(a, to_last, _mm512_maskz_mov_epi64(0xc0, a));
    std::array<std::uint64_t, 8> words{};
    _mm512_storeu_si512(words.data(), moved);
    crc = _mm_crc32_u64(0, words[0] ^ words[2] ^ words[4] ^ words[6]);
    crc = _mm_crc32_u64(crc, words[1] ^ words[3] ^ words[5] ^ words[7]);
  }
  for (; left >= 8; left -= 8, data += 8) crc = _mm_crc32_u64(crc, load_u64(data));
  auto tail = static_cast<std::uint32_t>(crc);
  for (; left > 0; --left, ++data) tail = _mm_crc32_u8(tail, static_cast<std::uint8_t>(*data));
  return ~tail;
}
#undef KVL_WIDE

// GCC 12 knows no name for OS support of 512-bit registers: the feature test includes it.
bool has_wide() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("vpclmulqdq") != 0 &&
         __builtin_cpu_supports("pclmul") != 0;
}

#endif

}  // namespace

std::uint32_t crc32c_portable(std::span<const std::byte> data, std::uint32_t crc) {
  const std::byte* at = data.data();
  std::size_t left = data.size();
  crc = ~crc;
  for (; left >= 8; left -= 8, at += 8) {
    const std::uint64_t word = load_u64(at) ^ crc;
    crc = 0;
    for (std::size_t k = 0; k < 8; ++k) crc ^= kSlicing[7 - k][(word >> (8 * k)) & 0xffU];
  }
  for (; left > 0; --left, ++at) {
    crc = (crc >> 8) ^ kSlicing[0][(crc ^ static_cast<std::uint32_t>(*at)) & 0xffU];
  }
  return ~crc;
}

std::span<const Crc32cKind> crc32c_kinds() {
#if defined(__x86_64__)
  static const std::vector<Crc32cKind> kinds = [] {
    std::vector<Crc32cKind> all;
    const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
    if (has_instruction && has_wide()) all.push_back({"vpclmulqdq", crc32c_wide});
    if (has_instruction) all.push_back({"sse4.2", crc32c_sse42});
    all.push_back({"tables", crc32c_portable});
    return all;
  }();
#else
  static const std::vector<Crc32cKind> kinds{{"tables", crc32c_portable}};
#endif
  return kinds;
}

bool crc32c_has_hardware() { return crc32c_kinds().size() > 1; }

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t crc) {
  static const auto best = crc32c_kinds().front().run;
  return best(data, crc);
}

std::uint32_t crc32c_strided(const std::byte* first, std::uint64_t bytes, std::uint64_t count,
                             std::uint64_t stride, std::uint32_t crc) {
  for (std::uint64_t i = 0; i < count; ++i) crc = crc32c({first + i * stride, bytes}, crc);
  return crc;
}

}  // namespace kvl
