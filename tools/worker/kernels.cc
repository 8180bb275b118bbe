// The arithmetic. Compiled with -ffp-contract=off and optimised in every build (CMakeLists.txt).
#include "worker/kernels.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace kvl::worker {
namespace {

// Four lanes: native on SSE2 and NEON, so that the value is never passed in memory.
using Lanes = float __attribute__((vector_size(16)));

inline Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

inline float widen(std::uint16_t bf16) { return std::bit_cast<float>(std::uint32_t{bf16} << 16); }

inline std::uint16_t narrow(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

}  // namespace

float dot(const float* a, const float* b, std::uint32_t count) {
  Lanes sum0{};
  Lanes sum1{};
  Lanes sum2{};
  Lanes sum3{};
  std::uint32_t i = 0;
  for (; i + 16 <= count; i += 16) {
    sum0 += load(a + i) * load(b + i);
    sum1 += load(a + i + 4) * load(b + i + 4);
    sum2 += load(a + i + 8) * load(b + i + 8);
    sum3 += load(a + i + 12) * load(b + i + 12);
  }
  const Lanes sum = (sum0 + sum1) + (sum2 + sum3);
  float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

void multiply(const Matrix& matrix, const float* x, std::uint32_t tokens, float* out,
              std::uint64_t out_stride) {
  for (std::uint32_t r = 0; r < matrix.rows; ++r) {
    const float* const row = matrix.row(r);
    for (std::uint32_t t = 0; t < tokens; ++t) {
      out[t * out_stride + r] = dot(row, x + std::size_t{t} * matrix.columns, matrix.columns);
    }
  }
}

void rms_norm(const float* x, std::span<const float> weight, float eps, float* out) {
  const auto count = static_cast<std::uint32_t>(weight.size());
  const float mean = dot(x, x, count) / static_cast<float>(count);
  const float scale = 1.0F / std::sqrt(mean + eps);
  for (std::uint32_t i = 0; i < count; ++i) out[i] = x[i] * scale * weight[i];
}

void rope(float* head, std::uint32_t dim, std::uint32_t position, float theta) {
  const std::uint32_t half = dim / 2;
  for (std::uint32_t i = 0; i < half; ++i) {
    const float exponent = -2.0F * static_cast<float>(i) / static_cast<float>(dim);
    const float angle = static_cast<float>(position) * std::pow(theta, exponent);
    const float sine = std::sin(angle);
    const float cosine = std::cos(angle);
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * cosine - b * sine;
    head[i + half] = b * cosine + a * sine;
  }
}

void swiglu(float* gate, const float* up, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    gate[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
  }
}

void add(float* to, const float* from, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) to[i] += from[i];
}

void store_kv(const float* from, std::uint32_t count, Dtype dtype, std::byte* to) {
  if (dtype == Dtype::f32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint16_t value = narrow(from[i]);
    std::memcpy(to + i * sizeof(value), &value, sizeof(value));
  }
}

void load_kv(const std::byte* from, std::uint32_t count, Dtype dtype, float* to) {
  if (dtype == Dtype::f32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    std::uint16_t value = 0;
    std::memcpy(&value, from + i * sizeof(value), sizeof(value));
    to[i] = widen(value);
  }
}

void attend(const float* query, std::uint32_t dim, const KvRows& keys, const KvRows& values,
            std::uint32_t count, float* scores, float* scratch, float* out) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  float highest = -INFINITY;
  for (std::uint32_t i = 0; i < count; ++i) {
    load_kv(keys.row(i), dim, keys.dtype, scratch);
    scores[i] = dot(query, scratch, dim) * scale;
    highest = std::fmax(highest, scores[i]);
  }
  float total = 0.0F;
  for (std::uint32_t i = 0; i < count; ++i) {
    scores[i] = std::exp(scores[i] - highest);
    total += scores[i];
  }
  for (std::uint32_t d = 0; d < dim; ++d) out[d] = 0.0F;
  for (std::uint32_t i = 0; i < count; ++i) {
    load_kv(values.row(i), dim, values.dtype, scratch);
    const float weight = scores[i] / total;
    for (std::uint32_t d = 0; d < dim; ++d) out[d] += weight * scratch[d];
  }
}

}  // namespace kvl::worker
