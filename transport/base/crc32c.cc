// CRC-32C by SSE 4.2 in three interleaved streams, or by slicing over eight tables.
#include "transport/base/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
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

#if defined(__x86_64__)
bool crc32c_has_hardware() {
  static const bool has = __builtin_cpu_supports("sse4.2") != 0;
  return has;
}
std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t crc) {
  return crc32c_has_hardware() ? crc32c_sse42(data, crc) : crc32c_portable(data, crc);
}
#else
bool crc32c_has_hardware() { return false; }
std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t crc) {
  return crc32c_portable(data, crc);
}
#endif

std::uint32_t crc32c_strided(const std::byte* first, std::uint64_t bytes, std::uint64_t count,
                             std::uint64_t stride, std::uint32_t crc) {
  for (std::uint64_t i = 0; i < count; ++i) crc = crc32c({first + i * stride, bytes}, crc);
  return crc;
}

}  // namespace kvl
