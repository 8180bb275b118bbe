// Seeded random weights. An element's value follows from (seed, tensor name, row, column) alone, so
// that every rank makes its own slice and all layouts compute with the same numbers.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "worker/model_config.h"

namespace kvl::worker {

// Row-major.
struct Matrix {
  std::uint32_t rows = 0;
  std::uint32_t columns = 0;
  std::vector<float> values;

  const float* row(std::uint32_t r) const { return values.data() + std::size_t{r} * columns; }
};

struct TensorSpec {
  std::string_view name;
  std::uint32_t columns = 0;  // of the whole tensor
  float scale = 1.0F;         // values are uniform in [-scale, scale)
};
Matrix random_slice(std::uint64_t seed, const TensorSpec& tensor, Range rows, Range columns);

// One layer as a rank holds it. Products whose result is summed over ranks (wo, w_down) are kept as
// one matrix per query head or FFN unit: the unit of summation (see rank_model.h).
struct LayerWeights {
  std::vector<float> attention_norm, ffn_norm;  // [hidden]
  Matrix wq;                                    // [heads * head_dim][hidden]
  Matrix wk, wv;                                // [kv_heads * head_dim][hidden]
  std::vector<Matrix> wo;                       // per head [hidden][head_dim]
  Matrix w_gate, w_up;                          // [units * ffn_unit][hidden]
  std::vector<Matrix> w_down;                   // per unit [hidden][ffn_unit]
};
struct RankWeights {
  Matrix embedding;  // [vocab][hidden]; first stage, and last stage when the head is tied
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;
  Matrix head;  // [share.vocab][hidden]; last stage
};
RankWeights make_weights(const ModelConfig& model, const RankShare& share, std::uint64_t seed);

}  // namespace kvl::worker
