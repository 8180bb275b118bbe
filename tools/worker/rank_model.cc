// One rank's part of the transformer, over paged KV.
#include "worker/rank_model.h"

#include <algorithm>

namespace kvl::worker {

RankModel::RankModel(const ModelConfig& model, const RankShare& share, std::uint64_t seed,
                     PagedKv kv, Collective& collective)
    : model_(model),
      share_(share),
      kv_(std::move(kv)),
      collective_(collective),
      weights_(make_weights(model, share, seed)) {}

Status RankModel::check(const Batch& batch) const {
  const LayoutGroup& group = kv_.group();
  for (const Segment& segment : batch) {
    const std::uint64_t end = std::uint64_t{segment.position} + segment.tokens.size();
    if (segment.tokens.empty() || end > std::uint64_t{segment.pages.size()} * group.page_tokens) {
      return {Code::invalid_argument, "a segment is empty or longer than its pages"};
    }
    for (const std::int32_t token : segment.tokens) {
      if (token < 0 || static_cast<std::uint32_t>(token) >= model_.vocab) {
        return {Code::invalid_argument, "token outside the vocabulary"};
      }
    }
    for (const std::uint32_t page : segment.pages) {
      if (page >= group.page_count) return {Code::invalid_argument, "page out of range"};
    }
  }
  return {};
}

Status RankModel::forward(const Batch& batch, const LayerReady& layer_ready, Logits& logits) {
  KVL_TRY(check(batch));
  rows_.clear();
  for (const Segment& segment : batch) {
    for (std::uint32_t i = 0; i < segment.tokens.size(); ++i) {
      rows_.push_back({&segment, segment.position + i});
    }
  }
  hidden_.resize(rows_.size() * model_.hidden);
  normed_.resize(hidden_.size());
  if (share_.first_stage()) {
    embed(batch);
  } else {
    KVL_TRY(collective_.receive(hidden_));
  }
  for (std::uint32_t i = 0; i < share_.layers.count; ++i) {
    KVL_TRY(attention(weights_.layers[i], share_.layers.first + i));
    if (layer_ready) announce(batch, share_.layers.first + i, layer_ready);
    KVL_TRY(feed_forward(weights_.layers[i]));
  }
  if (!share_.last_stage()) return collective_.send_forward(hidden_);
  make_logits(batch, logits);
  return {};
}

void RankModel::embed(const Batch& batch) {
  float* out = hidden_.data();
  for (const Segment& segment : batch) {
    for (const std::int32_t token : segment.tokens) {
      std::copy_n(weights_.embedding.row(static_cast<std::uint32_t>(token)), model_.hidden, out);
      out += model_.hidden;
    }
  }
}

void RankModel::announce(const Batch& batch, std::uint32_t layer, const LayerReady& layer_ready) {
  for (const Segment& segment : batch) {
    if (!segment.handoff) continue;
    layer_ready(segment.room, layer, std::uint64_t{segment.position} + segment.tokens.size());
  }
}

Status RankModel::attention(const LayerWeights& layer, std::uint32_t index) {
  for (std::size_t t = 0; t < rows_.size(); ++t) {
    rms_norm(&hidden_[t * model_.hidden], layer.attention_norm, model_.norm_eps,
             &normed_[t * model_.hidden]);
  }
  project_qkv(layer);
  store(index);
  attend_rows(index);
  return add_units(layer.wo, mixed_, model_.kv.head_dim, attention_terms_);
}

void RankModel::project_qkv(const LayerWeights& layer) {
  const auto tokens = static_cast<std::uint32_t>(rows_.size());
  const std::uint32_t dim = model_.kv.head_dim;
  const auto project = [&](const Matrix& matrix, std::vector<float>& out) {
    out.resize(std::size_t{tokens} * matrix.rows);
    multiply(matrix, normed_.data(), tokens, out.data(), matrix.rows);
  };
  project(layer.wq, query_);
  project(layer.wk, key_);
  project(layer.wv, value_);
  for (std::uint32_t t = 0; t < tokens; ++t) {
    for (std::uint32_t h = 0; h < share_.heads.count; ++h) {
      rope(&query_[(std::size_t{t} * share_.heads.count + h) * dim], dim, rows_[t].position,
           model_.rope_theta);
    }
    for (std::uint32_t h = 0; h < share_.kv_heads.count; ++h) {
      rope(&key_[(std::size_t{t} * share_.kv_heads.count + h) * dim], dim, rows_[t].position,
           model_.rope_theta);
    }
  }
}

void RankModel::store(std::uint32_t layer) {
  const LayoutGroup& group = kv_.group();
  const std::uint32_t dim = model_.kv.head_dim;
  for (std::size_t t = 0; t < rows_.size(); ++t) {
    const std::uint32_t page = rows_[t].segment->pages[rows_[t].position / group.page_tokens];
    const std::uint64_t offset =
        rows_[t].position % group.page_tokens * std::uint64_t{kv_.token_stride()};
    for (std::uint32_t h = 0; h < share_.kv_heads.count; ++h) {
      const std::size_t from = (t * share_.kv_heads.count + h) * dim;
      const std::uint32_t head = share_.kv_heads.first + h;
      store_kv(&key_[from], dim, group.dtype, kv_.at(layer, KvPart::k, page, head) + offset);
      store_kv(&value_[from], dim, group.dtype, kv_.at(layer, KvPart::v, page, head) + offset);
    }
  }
}

void RankModel::attend_rows(std::uint32_t layer) {
  const LayoutGroup& group = kv_.group();
  const std::uint32_t dim = model_.kv.head_dim;
  mixed_.resize(query_.size());
  scratch_.resize(dim);
  for (std::uint32_t h = 0; h < share_.heads.count; ++h) {
    const std::uint32_t kv_head = (share_.heads.first + h) / model_.query_group();
    const Segment* current = nullptr;
    for (std::size_t t = 0; t < rows_.size(); ++t) {
      if (rows_[t].segment != current) {
        current = rows_[t].segment;
        key_pages_.clear();
        value_pages_.clear();
        for (const std::uint32_t page : current->pages) {
          key_pages_.push_back(kv_.at(layer, KvPart::k, page, kv_head));
          value_pages_.push_back(kv_.at(layer, KvPart::v, page, kv_head));
        }
      }
      const std::uint32_t count = rows_[t].position + 1;
      if (scores_.size() < count) scores_.resize(count);
      const auto rows = [&](const std::vector<const std::byte*>& pages) {
        return KvRows{pages.data(), kv_.token_stride(), group.page_tokens, group.dtype};
      };
      const std::size_t at = (t * share_.heads.count + h) * dim;
      attend(&query_[at], dim, rows(key_pages_), rows(value_pages_), count, scores_.data(),
             scratch_.data(), &mixed_[at]);
    }
  }
}

Status RankModel::feed_forward(const LayerWeights& layer) {
  const auto tokens = static_cast<std::uint32_t>(rows_.size());
  for (std::size_t t = 0; t < tokens; ++t) {
    rms_norm(&hidden_[t * model_.hidden], layer.ffn_norm, model_.norm_eps,
             &normed_[t * model_.hidden]);
  }
  gate_.resize(std::size_t{tokens} * layer.w_gate.rows);
  up_.resize(gate_.size());
  multiply(layer.w_gate, normed_.data(), tokens, gate_.data(), layer.w_gate.rows);
  multiply(layer.w_up, normed_.data(), tokens, up_.data(), layer.w_up.rows);
  swiglu(gate_.data(), up_.data(), gate_.size());
  return add_units(layer.w_down, gate_, model_.ffn_unit(), ffn_terms_);
}

// hidden += the sum over all units of unit matrix . unit input, in the order of the whole model.
// `input` is [token][unit of this rank][unit_columns], `terms` [unit][token][hidden].
Status RankModel::add_units(const std::vector<Matrix>& units, const std::vector<float>& input,
                            std::uint32_t unit_columns, std::vector<float>& terms) {
  const auto tokens = static_cast<std::uint32_t>(rows_.size());
  terms.resize(units.size() * hidden_.size());
  unit_input_.resize(std::size_t{tokens} * unit_columns);
  for (std::size_t u = 0; u < units.size(); ++u) {
    for (std::size_t t = 0; t < tokens; ++t) {
      std::copy_n(&input[(t * units.size() + u) * unit_columns], unit_columns,
                  &unit_input_[t * unit_columns]);
    }
    multiply(units[u], unit_input_.data(), tokens, &terms[u * hidden_.size()], model_.hidden);
  }
  const auto gathered = collective_.gather(terms);
  if (!gathered) return gathered.status();
  for (const std::span<const float> part : *gathered) {
    if (part.size() != terms.size()) return {Code::internal, "ranks disagree about a batch"};
    for (std::size_t at = 0; at < part.size(); at += hidden_.size()) {
      add(hidden_.data(), &part[at], hidden_.size());
    }
  }
  return {};
}

void RankModel::make_logits(const Batch& batch, Logits& logits) {
  std::size_t end = 0;
  for (const Segment& segment : batch) {
    end += segment.tokens.size();
    if (!segment.logits) continue;
    rms_norm(&hidden_[(end - 1) * model_.hidden], weights_.final_norm, model_.norm_eps,
             normed_.data());
    multiply(weights_.head, normed_.data(), 1, logits.emplace_back(share_.vocab.count).data(), 0);
  }
}

}  // namespace kvl::worker
