// One rank's part of the transformer, over paged KV.
//
// All layouts give the same bits. Sums that cross ranks (attention output and FFN output into the
// hidden state) are made of one term per query head or FFN unit; a rank makes the terms of its own
// units, gathers everybody's, and adds all of them in the order of the whole model. No sum thus
// depends on how many ranks there are, on the chunk a token came in, or on what else is in a batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/batch.h"
#include "worker/collective.h"
#include "worker/kernels.h"
#include "worker/model_config.h"
#include "worker/paged_kv.h"
#include "worker/weights.h"

namespace kvl::worker {

// Belongs to its rank's thread.
class RankModel {
 public:
  // `collective` must outlive the model, and the memory of `kv` too. The layout of `kv` must be
  // that of share.slice.
  RankModel(const ModelConfig& model, const RankShare& share, std::uint64_t seed, PagedKv kv,
            Collective& collective);

  const RankShare& share() const { return share_; }

  // Runs the batch through this rank's layers. On the last stage, row i of `logits` becomes the
  // rank's vocabulary slice for the i-th segment that wants logits. invalid_argument for a token or
  // page out of range; the batch is then refused by every rank alike, before any exchange.
  Status forward(const Batch& batch, const LayerReady& layer_ready, Logits& logits);

 private:
  // A token's place in its sequence.
  struct Row {
    const Segment* segment;
    std::uint32_t position;
  };

  Status check(const Batch& batch) const;
  void embed(const Batch& batch);
  Status attention(const LayerWeights& layer, std::uint32_t index);
  void announce(const Batch& batch, std::uint32_t layer, const LayerReady& layer_ready);
  Status feed_forward(const LayerWeights& layer);
  void project_qkv(const LayerWeights& layer);
  void store(std::uint32_t layer);
  void attend_rows(std::uint32_t layer);
  Status add_units(const std::vector<Matrix>& units, const std::vector<float>& input,
                   std::uint32_t unit_columns, std::vector<float>& terms);
  void make_logits(const Batch& batch, Logits& logits);

  ModelConfig model_;
  RankShare share_;
  PagedKv kv_;
  Collective& collective_;
  RankWeights weights_;

  // Room for one batch; kept between batches.
  std::vector<Row> rows_;
  std::vector<float> hidden_, normed_, query_, key_, value_, mixed_, gate_, up_;
  std::vector<float> attention_terms_, ffn_terms_;  // two, because gather() is asynchronous by one
  std::vector<float> unit_input_, scores_, scratch_;
  std::vector<const std::byte*> key_pages_, value_pages_;
};

}  // namespace kvl::worker
