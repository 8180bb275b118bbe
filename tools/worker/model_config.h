// The models the reference engine knows: their shape, and which of them it can compute.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kvl/page_layout.h"
#include "kvl/status.h"

namespace kvl::worker {

// A Llama-architecture decoder. `kv` says what is kept per token (layers, KV heads, head size,
// stored dtype); the rest only matters where arithmetic is done.
struct ModelConfig {
  std::string name;
  ModelGeometry kv;
  std::uint32_t heads = 0;  // query heads; 0: geometry only (--kv-only), nothing to compute
  std::uint32_t hidden = 0;
  std::uint32_t ffn = 0;  // a multiple of `heads`: one FFN unit per query head
  std::uint32_t vocab = 0;
  float rope_theta = 10000.0F;
  float norm_eps = 1e-5F;
  bool tied_head = false;  // the LM head is the embedding table

  bool computable() const { return heads != 0; }
  std::uint32_t ffn_unit() const { return ffn / heads; }
  std::uint32_t query_group() const { return heads / kv.kv_heads; }
};

// Every name of known_geometries(); "demo" and "tiny" are computable. not_found otherwise.
Result<ModelConfig> find_model(std::string_view name);

// The part of the sums that a rank makes. Query heads and FFN units are shared out evenly over the
// tensor-parallel ranks, vocabulary rows nearly so, layers over the pipeline stages.
struct RankShare {
  ParallelSlice slice;
  Range layers;
  Range heads;     // query heads, and FFN units
  Range kv_heads;  // held here (replicated when there are more ranks than KV heads)
  Range vocab;     // LM head rows

  bool first_stage() const { return slice.pp_rank == 0; }
  bool last_stage() const { return slice.pp_rank + 1 == slice.pp_size; }
};
// invalid_argument when the model cannot be cut this way.
Result<RankShare> share_of(const ModelConfig& model, const ParallelSlice& slice);

}  // namespace kvl::worker
