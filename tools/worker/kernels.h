// The arithmetic. Every function adds in an order that depends on nothing but its arguments' sizes:
// the same numbers in give the same bits out, whatever rank, chunk or batch they come in.
#pragma once

#include <cstdint>
#include <span>

#include "kvl/page_layout.h"
#include "worker/weights.h"

namespace kvl::worker {

float dot(const float* a, const float* b, std::uint32_t count);

// out[t * out_stride + r] = matrix row r . x[t]; x holds `tokens` rows of matrix.columns.
void multiply(const Matrix& matrix, const float* x, std::uint32_t tokens, float* out,
              std::uint64_t out_stride);

// x / rms(x) * weight
void rms_norm(const float* x, std::span<const float> weight, float eps, float* out);

// Rotates pairs (i, i + dim / 2) of one head by position * theta^(-2i / dim).
void rope(float* head, std::uint32_t dim, std::uint32_t position, float theta);

// gate[i] = silu(gate[i]) * up[i]
void swiglu(float* gate, const float* up, std::uint64_t count);

// to[i] += from[i]
void add(float* to, const float* from, std::uint64_t count);

// Stores floats as KV elements (f32 or bf16, rounded to nearest even) and back.
void store_kv(const float* from, std::uint32_t count, Dtype dtype, std::byte* to);
void load_kv(const std::byte* from, std::uint32_t count, Dtype dtype, float* to);

// One query head against `count` past tokens. `row(i)` gives the stored K or V of token i.
struct KvRows {
  const std::byte* const* pages;  // first row of each page
  std::uint64_t token_stride = 0;
  std::uint32_t page_tokens = 0;
  Dtype dtype = Dtype::f32;

  const std::byte* row(std::uint32_t token) const {
    return pages[token / page_tokens] + token % page_tokens * token_stride;
  }
};
// `scores` is room for `count` floats, `scratch` for `dim`.
void attend(const float* query, std::uint32_t dim, const KvRows& keys, const KvRows& values,
            std::uint32_t count, float* scores, float* scratch, float* out);

}  // namespace kvl::worker
