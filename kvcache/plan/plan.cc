// plan_transfer: per group, the runs of one tensor are worked out once (a template); every layer is
// then a copy of it with the layer's regions and offsets added. That is what makes a plan cost a
// few nanoseconds per run, however many layers there are.
#include <algorithm>
#include <optional>
#include <utility>

#include "kvcache/plan/coalesce.h"
#include "kvcache/plan/segments.h"
#include "kvl/transfer_plan.h"

namespace kvl {
namespace {

constexpr std::uint64_t kOpsMax = 0xFFFFFFFF;  // layer_begin has 32 bits

// A dimension over whole tensors: K to V, or layer to layer.
struct TensorStep {
  std::uint64_t src = 0;
  std::uint64_t dst = 0;

  friend bool operator==(const TensorStep&, const TensorStep&) = default;
};

// What decides a template besides the group's segments. Absent: the tensors are done one by one.
struct TemplateKey {
  std::optional<TensorStep> k_to_v;
  std::optional<TensorStep> layer;

  friend bool operator==(const TemplateKey&, const TemplateKey&) = default;
};

struct GroupPlan {
  const LayoutGroup* src = nullptr;
  const LayoutGroup* dst = nullptr;
  Range layers;  // moved; count 0: this group does not take part
  Range heads;
  std::vector<SegmentRun> segments;

  bool has_template = false;
  TemplateKey key;
  std::vector<PageOp> ops;
  std::uint64_t bytes = 0;  // of all ops of the template
};

bool up(const TensorPlace& from, const TensorPlace& to) {
  return from.region == to.region && from.offset < to.offset;
}

std::optional<TensorStep> step(const TensorPlace& src_from, const TensorPlace& src_to,
                               const TensorPlace& dst_from, const TensorPlace& dst_to) {
  if (!up(src_from, src_to) || !up(dst_from, dst_to)) return std::nullopt;
  return TensorStep{src_to.offset - src_from.offset, dst_to.offset - dst_from.offset};
}

std::optional<TensorStep> k_to_v(const GroupPlan& g, std::uint32_t layer) {
  if (g.src->mla) return std::nullopt;
  const std::size_t s = layer - g.src->layers.first;
  const std::size_t d = layer - g.dst->layers.first;
  return step(g.src->k[s], g.src->v[s], g.dst->k[d], g.dst->v[d]);
}

// The one step between all neighbouring layers, if K and V follow the same one.
std::optional<TensorStep> layer_step(const GroupPlan& g) {
  const std::size_t s = g.layers.first - g.src->layers.first;
  const std::size_t d = g.layers.first - g.dst->layers.first;
  std::optional<TensorStep> common;
  for (std::uint32_t i = 0; i + 1 < g.layers.count; ++i) {
    const auto k = step(g.src->k[s + i], g.src->k[s + i + 1], g.dst->k[d + i], g.dst->k[d + i + 1]);
    if (!k || (common && *common != *k)) return std::nullopt;
    if (!g.src->mla && k_to_v(g, g.layers.first + i) != k_to_v(g, g.layers.first + i + 1)) {
      return std::nullopt;
    }
    common = k;
  }
  if (!g.src->mla && !k_to_v(g, g.layers.first)) return std::nullopt;
  return common;
}

PieceBox box_of(const GroupPlan& g, const TemplateKey& key, const SegmentRun& run) {
  PieceBox box;
  box.bytes = g.src->head_bytes();
  box.add({g.heads.count, g.src->head_stride(), g.dst->head_stride()});
  box.add({run.tokens, g.src->token_stride(), g.dst->token_stride()});
  if (key.k_to_v) box.add({2, key.k_to_v->src, key.k_to_v->dst});
  if (key.layer) box.add({g.layers.count, key.layer->src, key.layer->dst});
  box.add({run.count, run.src_step, run.dst_step});
  fuse(box);
  return box;
}

Status make_template(GroupPlan& g, const TemplateKey& key, const PlanRequest& request) {
  if (g.has_template && g.key == key) return {};
  g.has_template = true;
  g.key = key;
  g.ops.clear();
  g.bytes = 0;
  const std::uint64_t src_head = (g.heads.first - g.src->heads.first) * g.src->head_stride();
  const std::uint64_t dst_head = (g.heads.first - g.dst->heads.first) * g.dst->head_stride();
  for (const SegmentRun& run : g.segments) {
    const PieceBox box = box_of(g, key, run);
    const std::size_t first = g.ops.size();
    if (op_count(box) > request.ops_max - std::min<std::uint64_t>(request.ops_max, first)) {
      return {Code::exhausted, "plan: more ops than ops_max"};
    }
    append_ops(box, run.src + src_head, run.dst + dst_head, g.ops);
    g.bytes += (g.ops.size() - first) * g.ops.back().total_bytes();
  }
  if (request.swap_sides) {
    for (PageOp& op : g.ops) {
      std::swap(op.local_offset, op.remote_offset);
      std::swap(op.local_stride, op.remote_stride);
    }
  }
  return {};
}

// Copies the template to where one tensor (or the box of tensors that starts there) lies.
Status append_template(const GroupPlan& g, TensorPlace src, TensorPlace dst,
                       const PlanRequest& request, TransferPlan& out) {
  const std::size_t first = out.ops.size();
  if (first + g.ops.size() > request.ops_max) {
    return {Code::exhausted, "plan: more ops than ops_max"};
  }
  if (request.swap_sides) std::swap(src, dst);
  // A block copy and a pass over the copy while it is in cache: cheaper than element by element.
  out.ops.insert(out.ops.end(), g.ops.begin(), g.ops.end());
  for (PageOp& op : std::span(out.ops).subspan(first)) {
    op.local_region = src.region;
    op.remote_region = dst.region;
    op.local_offset += src.offset;
    op.remote_offset += dst.offset;
  }
  out.bytes += g.bytes;
  return {};
}

Status append_layer(GroupPlan& g, std::uint32_t layer, const PlanRequest& request,
                    TransferPlan& out) {
  const std::size_t s = layer - g.src->layers.first;
  const std::size_t d = layer - g.dst->layers.first;
  const TemplateKey key{.k_to_v = k_to_v(g, layer), .layer = std::nullopt};
  KVL_TRY(make_template(g, key, request));
  KVL_TRY(append_template(g, g.src->k[s], g.dst->k[d], request, out));
  if (!g.src->mla && !key.k_to_v) {
    KVL_TRY(append_template(g, g.src->v[s], g.dst->v[d], request, out));
  }
  return {};
}

// All layers of a group as one box, where their tensors are evenly spaced on both sides.
Status append_group(GroupPlan& g, const PlanRequest& request, TransferPlan& out) {
  const std::optional<TensorStep> even = layer_step(g);
  if (!even) {
    for (std::uint32_t i = 0; i < g.layers.count; ++i) {
      KVL_TRY(append_layer(g, g.layers.first + i, request, out));
    }
    return {};
  }
  KVL_TRY(make_template(g, {.k_to_v = k_to_v(g, g.layers.first), .layer = even}, request));
  return append_template(g, g.src->k[g.layers.first - g.src->layers.first],
                         g.dst->k[g.layers.first - g.dst->layers.first], request, out);
}

}  // namespace

struct TransferPlan::Scratch {
  std::vector<GroupPlan> groups;
  std::vector<std::uint32_t> ids;
};

void TransferPlan::ScratchDelete::operator()(Scratch* kept) const { delete kept; }

namespace {

Status prepare_groups(const PageLayout& src, const PageLayout& dst, const PlanRequest& request,
                      TransferPlan::Scratch& scratch) {
  scratch.groups.resize(src.groups().size());
  for (std::size_t i = 0; i < scratch.groups.size(); ++i) {
    GroupPlan& g = scratch.groups[i];
    g.src = &src.groups()[i];
    g.dst = &dst.groups()[i];
    g.has_template = false;
    g.layers = {};
    if (!sends(g.src->kv_heads, src.slice(), dst.slice())) continue;
    const Range common = intersect(g.src->layers, g.dst->layers);
    const std::uint64_t end = std::uint64_t{request.layers.first} + request.layers.count;
    const std::uint64_t first = std::max(common.first, request.layers.first);
    const std::uint64_t last = std::min<std::uint64_t>(common.end(), end);
    if (first >= last) continue;
    g.layers = {static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(last - first)};
    g.heads = intersect(g.src->heads, g.dst->heads);
    KVL_TRY(make_segments(*g.src, *g.dst, request.groups[i], request.skip_tokens, request.tokens,
                          g.segments, scratch.ids));
  }
  return {};
}

Range moved_layers(const std::vector<GroupPlan>& groups) {
  Range all;
  for (const GroupPlan& g : groups) {
    if (g.layers.count == 0) continue;
    if (all.count == 0) {
      all = g.layers;
      continue;
    }
    const std::uint32_t end = std::max(all.end(), g.layers.end());
    all.first = std::min(all.first, g.layers.first);
    all.count = end - all.first;
  }
  return all;
}

Status fill(const PlanRequest& request, TransferPlan& out) {
  std::vector<GroupPlan>& groups = out.scratch->groups;
  const Range layers = moved_layers(groups);
  if (layers.count == 0) return {};
  out.first_layer = layers.first;
  out.layer_begin.push_back(0);
  if (!request.by_layer) {
    for (GroupPlan& g : groups) {
      if (g.layers.count > 0) KVL_TRY(append_group(g, request, out));
    }
    out.layer_begin.push_back(static_cast<std::uint32_t>(out.ops.size()));
    return {};
  }
  for (std::uint32_t layer = layers.first; layer < layers.end(); ++layer) {
    for (GroupPlan& g : groups) {
      if (g.layers.contains(layer)) KVL_TRY(append_layer(g, layer, request, out));
    }
    if (layer == layers.first) {
      // The other layers are most likely alike.
      const std::uint64_t ops = std::uint64_t{out.ops.size()} * layers.count;
      out.ops.reserve(std::min(ops, request.ops_max));
    }
    out.layer_begin.push_back(static_cast<std::uint32_t>(out.ops.size()));
  }
  return {};
}

void clear(TransferPlan& out) {
  out.ops.clear();
  out.layer_begin.clear();
  out.first_layer = 0;
  out.bytes = 0;
}

}  // namespace

Status plan_transfer(const PageLayout& src, const PageLayout& dst, const PlanRequest& request,
                     TransferPlan& out) {
  clear(out);
  KVL_TRY(compatible(src, dst));
  if (request.skip_tokens >= request.tokens) {
    return {Code::invalid_argument, "plan: no tokens to move"};
  }
  if (request.groups.size() != src.groups().size()) {
    return {Code::invalid_argument, "plan: one page list per group is needed"};
  }
  if (!out.scratch) out.scratch.reset(new TransferPlan::Scratch);
  PlanRequest bounded = request;
  bounded.ops_max = std::min<std::uint64_t>(request.ops_max, kOpsMax);
  KVL_TRY(prepare_groups(src, dst, bounded, *out.scratch));
  const Status status = fill(bounded, out);
  if (!status.ok()) clear(out);
  return status;
}

}  // namespace kvl
