// Seeded random weights.
#include "worker/weights.h"

#include <cmath>
#include <string>

#include "worker/mix.h"

namespace kvl::worker {
namespace {

std::uint64_t name_hash(std::string_view name) {  // FNV-1a
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return hash;
}

class Maker {
 public:
  Maker(const ModelConfig& model, const RankShare& share, std::uint64_t seed)
      : model_(model), share_(share), seed_(seed) {}

  // Variance 1 / columns: activations neither grow nor vanish through the layers.
  Matrix slice(const std::string& name, std::uint32_t columns, Range rows, Range part) const {
    const float scale = std::sqrt(3.0F / static_cast<float>(columns));
    return random_slice(seed_, {name, columns, scale}, rows, part);
  }
  Matrix rows(const std::string& name, std::uint32_t columns, Range which) const {
    return slice(name, columns, which, {0, columns});
  }
  std::vector<float> norm(const std::string& name) const {
    Matrix noise = random_slice(seed_, {name, model_.hidden, 0.1F}, {0, 1}, {0, model_.hidden});
    for (float& value : noise.values) value += 1.0F;
    return std::move(noise.values);
  }
  LayerWeights layer(std::uint32_t index) const;
  RankWeights all() const;

 private:
  const ModelConfig& model_;
  const RankShare& share_;
  std::uint64_t seed_;
};

LayerWeights Maker::layer(std::uint32_t index) const {
  const std::string prefix = "layers." + std::to_string(index) + ".";
  const std::uint32_t dim = model_.kv.head_dim;
  const std::uint32_t unit = model_.ffn_unit();
  const auto scaled = [](Range range, std::uint32_t by) {
    return Range{range.first * by, range.count * by};
  };
  LayerWeights layer;
  layer.attention_norm = norm(prefix + "attention_norm");
  layer.ffn_norm = norm(prefix + "ffn_norm");
  layer.wq = rows(prefix + "wq", model_.hidden, scaled(share_.heads, dim));
  layer.wk = rows(prefix + "wk", model_.hidden, scaled(share_.kv_heads, dim));
  layer.wv = rows(prefix + "wv", model_.hidden, scaled(share_.kv_heads, dim));
  layer.w_gate = rows(prefix + "w_gate", model_.hidden, scaled(share_.heads, unit));
  layer.w_up = rows(prefix + "w_up", model_.hidden, scaled(share_.heads, unit));
  for (std::uint32_t h = share_.heads.first; h < share_.heads.end(); ++h) {
    const Range all{0, model_.hidden};
    layer.wo.push_back(slice(prefix + "wo", model_.heads * dim, all, {h * dim, dim}));
    layer.w_down.push_back(slice(prefix + "w_down", model_.ffn, all, {h * unit, unit}));
  }
  return layer;
}

RankWeights Maker::all() const {
  RankWeights weights;
  const Range vocab{0, model_.vocab};
  const TensorSpec embedding{"embedding", model_.hidden, std::sqrt(3.0F)};
  const Range hidden{0, model_.hidden};
  if (share_.first_stage()) weights.embedding = random_slice(seed_, embedding, vocab, hidden);
  for (std::uint32_t l = share_.layers.first; l < share_.layers.end(); ++l) {
    weights.layers.push_back(layer(l));
  }
  if (share_.last_stage()) {
    weights.final_norm = norm("final_norm");
    weights.head = model_.tied_head ? random_slice(seed_, embedding, share_.vocab, hidden)
                                    : rows("head", model_.hidden, share_.vocab);
  }
  return weights;
}

}  // namespace

Matrix random_slice(std::uint64_t seed, const TensorSpec& tensor, Range rows, Range columns) {
  Matrix matrix{rows.count, columns.count, {}};
  matrix.values.reserve(std::size_t{rows.count} * columns.count);
  const std::uint64_t key = mix64(seed ^ name_hash(tensor.name));
  for (std::uint32_t r = rows.first; r < rows.end(); ++r) {
    for (std::uint32_t c = columns.first; c < columns.end(); ++c) {
      const std::uint64_t index = std::uint64_t{r} * tensor.columns + c;
      // 24 bits are exact in a float: [0, 1) in steps of 2^-24.
      const auto bits = static_cast<std::int32_t>(mix64(key + index) >> 40);
      const float unit = static_cast<float>(bits) * 0x1p-24F;
      matrix.values.push_back((2.0F * unit - 1.0F) * tensor.scale);
    }
  }
  return matrix;
}

RankWeights make_weights(const ModelConfig& model, const RankShare& share, std::uint64_t seed) {
  return Maker(model, share, seed).all();
}

}  // namespace kvl::worker
