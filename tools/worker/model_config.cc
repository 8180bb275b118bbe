// The models the reference engine knows.
#include "worker/model_config.h"

#include "worker/tokenizer.h"

namespace kvl::worker {

Result<ModelConfig> find_model(std::string_view name) {
  const Result<ModelGeometry> geometry = find_geometry(name);
  if (!geometry) return geometry.status();
  ModelConfig model;
  model.name = name;
  model.kv = *geometry;
  if (name == "demo" || name == "tiny") {
    model.heads = 8;
    model.hidden = model.heads * model.kv.head_dim;
    model.ffn = 2 * model.hidden;
    model.vocab = kVocabulary;
    model.tied_head = name == "tiny";
  }
  return model;
}

Result<RankShare> share_of(const ModelConfig& model, const ParallelSlice& slice) {
  KVL_TRY(validate(slice));
  if (slice.pp_size > model.kv.layers) {
    return Status(Code::invalid_argument, "more pipeline stages than layers");
  }
  RankShare share;
  share.slice = slice;
  share.layers = layers_of(model.kv.layers, slice.pp_size, slice.pp_rank);
  const Result<Range> kv_heads = heads_of(model.kv.kv_heads, slice.tp_size, slice.tp_rank);
  if (!kv_heads) return kv_heads.status();
  share.kv_heads = *kv_heads;
  if (!model.computable()) return share;
  if (model.heads % slice.tp_size != 0) {
    return Status(Code::invalid_argument, "tp does not divide the query heads");
  }
  const std::uint32_t heads = model.heads / slice.tp_size;
  share.heads = {slice.tp_rank * heads, heads};
  share.vocab = layers_of(model.vocab, slice.tp_size, slice.tp_rank);
  return share;
}

}  // namespace kvl::worker
