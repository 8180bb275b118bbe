// Model geometries by name, and how tensor and pipeline parallelism cut them.
#include <algorithm>
#include <array>

#include "kvl/page_layout.h"

namespace kvl {
namespace {

constexpr std::array kGeometries = {
    NamedGeometry{"llama-3.1-8b", {.layers = 32, .kv_heads = 8, .head_dim = 128}},
    NamedGeometry{"llama-3.1-70b", {.layers = 80, .kv_heads = 8, .head_dim = 128}},
    NamedGeometry{"qwen3-32b", {.layers = 64, .kv_heads = 8, .head_dim = 128}},
    // MLA: kv_lora_rank 512 + rope 64.
    NamedGeometry{"deepseek-v3", {.layers = 61, .kv_heads = 1, .head_dim = 576, .mla = true}},
    NamedGeometry{"tiny", {.layers = 8, .kv_heads = 4, .head_dim = 32}},
    NamedGeometry{"demo", {.layers = 8, .kv_heads = 4, .head_dim = 16, .dtype = Dtype::f32}},
};
static_assert(kGeometries[0].geometry.elements_per_token() * 2 == 131072);
static_assert(kGeometries[1].geometry.elements_per_token() * 2 == 327680);
static_assert(kGeometries[2].geometry.elements_per_token() * 2 == 262144);
static_assert(kGeometries[3].geometry.elements_per_token() * 2 == 70272);

}  // namespace

std::uint32_t dtype_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return 4;
    case Dtype::f16:
    case Dtype::bf16:
      return 2;
    case Dtype::fp8:
      return 1;
  }
  return 0;
}

std::string_view to_string(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return "f32";
    case Dtype::f16:
      return "f16";
    case Dtype::bf16:
      return "bf16";
    case Dtype::fp8:
      return "fp8";
  }
  return "unknown";
}

Result<Dtype> parse_dtype(std::string_view text) {
  for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::fp8}) {
    if (text == to_string(dtype)) return dtype;
  }
  return Status(Code::invalid_argument, "dtype must be f32, f16, bf16 or fp8");
}

std::span<const NamedGeometry> known_geometries() { return kGeometries; }

Result<ModelGeometry> find_geometry(std::string_view name) {
  const auto* found = std::find_if(kGeometries.begin(), kGeometries.end(),
                                   [&](const NamedGeometry& g) { return g.name == name; });
  if (found == kGeometries.end()) return Status(Code::not_found, "no model geometry of this name");
  return found->geometry;
}

Status validate(const ParallelSlice& slice) {
  if (slice.tp_size == 0 || slice.tp_size > PageLayout::kParallelMax) {
    return {Code::invalid_argument, "tp_size out of range"};
  }
  if (slice.pp_size == 0 || slice.pp_size > PageLayout::kParallelMax) {
    return {Code::invalid_argument, "pp_size out of range"};
  }
  if (slice.tp_rank >= slice.tp_size) return {Code::invalid_argument, "tp_rank not below tp_size"};
  if (slice.pp_rank >= slice.pp_size) return {Code::invalid_argument, "pp_rank not below pp_size"};
  return {};
}

Range intersect(Range a, Range b) {
  const std::uint32_t first = std::max(a.first, b.first);
  const std::uint32_t end = std::min(a.end(), b.end());
  return {first, end > first ? end - first : 0};
}

Result<Range> heads_of(std::uint32_t kv_heads, std::uint32_t tp_size, std::uint32_t tp_rank) {
  if (kv_heads == 0 || tp_size == 0 || tp_rank >= tp_size) {
    return Status(Code::invalid_argument, "kv_heads or tensor-parallel rank out of range");
  }
  if (kv_heads % tp_size == 0) {
    const std::uint32_t share = kv_heads / tp_size;
    return Range{tp_rank * share, share};
  }
  if (tp_size % kv_heads == 0) return Range{tp_rank / (tp_size / kv_heads), 1};
  return Status(Code::invalid_argument, "tp_size neither divides kv_heads nor is a multiple of it");
}

Range layers_of(std::uint32_t layers, std::uint32_t pp_size, std::uint32_t pp_rank) {
  if (pp_size == 0) return {};
  const std::uint32_t share = layers / pp_size;
  const std::uint32_t longer = layers % pp_size;
  return {pp_rank * share + std::min(pp_rank, longer), share + (pp_rank < longer ? 1 : 0)};
}

}  // namespace kvl
