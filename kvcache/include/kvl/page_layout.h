// PageLayout: where every byte of a paged KV cache lies. Each side of a movement describes its
// cache once; from then on a transfer is page ids.
//
// A cache is a list of groups. A group is a range of layers with one page size and one numbering of
// pages. Per layer it has a K tensor and a V tensor (or, for MLA, one latent tensor); a tensor is
// `page_count` pages of equal size, `page_stride` apart, beginning at a TensorPlace. Layer-first,
// page-first, K and V split or joined are only different places and strides.
//
// Values, no thread of their own. Sizes and offsets are bytes unless a name says otherwise.
// Wire form: docs/wire/page_layout.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvl/status.h"

namespace kvl {

// Of one element of the cache as stored. Wire values: append only.
enum class Dtype : std::uint8_t { f32 = 1, f16 = 2, bf16 = 3, fp8 = 4 };
std::uint32_t dtype_bytes(Dtype dtype);   // 0 for an unknown value
std::string_view to_string(Dtype dtype);  // "bf16"; "unknown" for an unknown value
Result<Dtype> parse_dtype(std::string_view text);

// What a model keeps per token. For MLA there are no heads: one latent vector of head_dim elements
// (kv_lora_rank + rope) per layer and token, no V, the same on every tensor-parallel rank;
// kv_heads is then 1.
struct ModelGeometry {
  std::uint32_t layers = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;
  bool mla = false;
  Dtype dtype = Dtype::bf16;

  // Of one token over all layers and heads, K and V.
  constexpr std::uint64_t elements_per_token() const {
    return std::uint64_t{layers} * (mla ? 1 : 2) * kv_heads * head_dim;
  }
  std::uint64_t bytes_per_token() const { return elements_per_token() * dtype_bytes(dtype); }
  friend bool operator==(const ModelGeometry&, const ModelGeometry&) = default;
};

struct NamedGeometry {
  std::string_view name;
  ModelGeometry geometry;
};
// llama-3.1-8b, llama-3.1-70b, qwen3-32b, deepseek-v3; "tiny" (4 KiB per token) for load tests and
// "demo" for the reference engine. Figures from the published model configurations.
std::span<const NamedGeometry> known_geometries();
Result<ModelGeometry> find_geometry(std::string_view name);  // not_found

// Which part of the model a rank holds.
struct ParallelSlice {
  std::uint32_t tp_size = 1;
  std::uint32_t tp_rank = 0;
  std::uint32_t pp_size = 1;
  std::uint32_t pp_rank = 0;

  friend bool operator==(const ParallelSlice&, const ParallelSlice&) = default;
};
// Sizes at least 1 and at most kParallelMax, ranks below sizes.
Status validate(const ParallelSlice& slice);

// [first, first + count)
struct Range {
  std::uint32_t first = 0;
  std::uint32_t count = 0;

  constexpr std::uint32_t end() const { return first + count; }
  constexpr bool contains(std::uint32_t value) const { return value - first < count; }
  friend bool operator==(const Range&, const Range&) = default;
};
Range intersect(Range a, Range b);  // count 0 when disjoint

// KV heads held by a rank. tp_size must divide kv_heads (each rank an equal share) or be a multiple
// of it (tp_size / kv_heads neighbouring ranks hold a replica of one head); else invalid_argument.
Result<Range> heads_of(std::uint32_t kv_heads, std::uint32_t tp_size, std::uint32_t tp_rank);
// Layers held by a stage; when pp_size does not divide, earlier stages hold one more.
Range layers_of(std::uint32_t layers, std::uint32_t pp_size, std::uint32_t pp_rank);

// Order inside a page of one tensor: [token][head][dim] or [head][token][dim]. Wire values.
enum class TokenOrder : std::uint8_t { nhd = 0, hnd = 1 };

// Where page 0 of a tensor begins.
struct TensorPlace {
  std::uint32_t region = 0;  // index into the owner's list of memory regions
  std::uint64_t offset = 0;  // from the region's start

  friend bool operator==(const TensorPlace&, const TensorPlace&) = default;
};

// One group of layers. Filled by make_layout or by hand (an engine with a layout of its own).
struct LayoutGroup {
  Range layers;                // the layers held here, numbered over the whole model
  std::uint32_t kv_heads = 0;  // of the whole model; what this rank holds follows from its slice
  std::uint32_t head_dim = 0;
  bool mla = false;  // one latent tensor per layer: kv_heads 1, `v` empty
  Dtype dtype = Dtype::bf16;
  std::uint32_t page_tokens = 0;
  std::uint32_t page_count = 0;
  TokenOrder token_order = TokenOrder::nhd;
  std::uint64_t page_stride =
      0;                       // between neighbouring pages of one tensor; >= tensor_page_bytes()
  std::vector<TensorPlace> k;  // layers.count of them
  std::vector<TensorPlace> v;  // layers.count of them, or none for MLA

  Range heads;  // held here; set by PageLayout::create, any earlier value is overwritten

  std::uint64_t head_bytes() const { return std::uint64_t{head_dim} * dtype_bytes(dtype); }
  // Of one page of one tensor.
  std::uint64_t tensor_page_bytes() const { return head_bytes() * heads.count * page_tokens; }
  std::uint64_t token_stride() const {
    return token_order == TokenOrder::nhd ? head_bytes() * heads.count : head_bytes();
  }
  std::uint64_t head_stride() const {
    return token_order == TokenOrder::nhd ? head_bytes() : head_bytes() * page_tokens;
  }
  friend bool operator==(const LayoutGroup&, const LayoutGroup&) = default;
};

enum class KvPart : std::uint8_t { k = 0, v = 1 };

struct PageAddress {
  std::uint32_t region = 0;
  std::uint64_t offset = 0;

  friend bool operator==(const PageAddress&, const PageAddress&) = default;
};

// A checked layout: every address that its page ids can name is inside its regions and no two
// names of one group share a byte. Immutable. Groups may share bytes with each other (engines that
// draw the pages of several groups from one pool do); keeping their page ids apart is the owner's.
class PageLayout {
 public:
  static constexpr std::uint32_t kLayersMax = 512;
  static constexpr std::uint32_t kGroupsMax = 64;
  static constexpr std::uint32_t kParallelMax = 4096;
  static constexpr std::uint32_t kRegionsMax = 4096;
  static constexpr std::uint64_t kTensorPageBytesMax = std::uint64_t{1} << 30;
  static constexpr std::uint64_t kRegionBytesMax = std::uint64_t{1} << 48;

  PageLayout() = default;  // no groups, no bytes

  // model_layers: of the whole model. invalid_argument names what is wrong.
  static Result<PageLayout> create(std::uint32_t model_layers, const ParallelSlice& slice,
                                   std::vector<LayoutGroup> groups);

  std::uint32_t model_layers() const { return model_layers_; }
  const ParallelSlice& slice() const { return slice_; }
  std::span<const LayoutGroup> groups() const { return groups_; }

  // One more than the highest region index in use, and the bytes region i must have at least
  // (0 for an index that no tensor uses).
  std::uint32_t region_count() const { return static_cast<std::uint32_t>(region_bytes_.size()); }
  std::uint64_t region_bytes(std::uint32_t region) const {
    return region < region_bytes_.size() ? region_bytes_[region] : 0;
  }

  // Of one page of a group over all its layers, K and V: what one page id stands for.
  std::uint64_t page_bytes(std::size_t group) const;

  // Of the first element of (layer, part, page, token, head). `layer` and `head` are numbered over
  // the whole model, `token` from the page's start. invalid_argument for what is not held here.
  Result<PageAddress> address(std::size_t group, std::uint32_t layer, KvPart part,
                              std::uint32_t page, std::uint32_t token, std::uint32_t head) const;

  // Wire form. decode takes bytes from anywhere: corrupt for what is not a layout, unsupported for
  // a version it does not know, invalid_argument for a layout that create() refuses.
  std::vector<std::byte> encode() const;
  static Result<PageLayout> decode(std::span<const std::byte> bytes);

  friend bool operator==(const PageLayout&, const PageLayout&) = default;

 private:
  std::uint32_t model_layers_ = 0;
  ParallelSlice slice_;
  std::vector<LayoutGroup> groups_;
  std::vector<std::uint64_t> region_bytes_;
};

// layer_first: all pages of a layer are neighbours. page_first: all layers of a page are, so that a
// page of the whole slice is one run.
enum class PageOrder : std::uint8_t { layer_first, page_first };
enum class RegionUse : std::uint8_t {
  one,         // one slab for everything
  per_layer,   // one region per layer, K and V in it (layer_first only)
  per_tensor,  // one region per K and per V tensor (layer_first, split only)
};

struct LayoutOptions {
  std::uint32_t page_tokens = 64;
  std::uint32_t page_count = 0;  // required
  PageOrder order = PageOrder::layer_first;
  // joined: K and V of a layer are neighbours in each page. Split: all pages of K, then all of V
  // (page_first: the slab's first half is K of every page, its second half V).
  bool kv_joined = false;
  TokenOrder token_order = TokenOrder::nhd;
  RegionUse regions = RegionUse::one;
  std::uint32_t first_region = 0;   // index of the first region used
  std::uint64_t region_offset = 0;  // bytes left free at the start of each region
};

// The usual layouts, one group. Shapes as vLLM makes them: layer_first with per_layer; as SGLang
// makes them: layer_first with per_tensor, page_first in one slab for its host pool.
Result<PageLayout> make_layout(const ModelGeometry& geometry, const ParallelSlice& slice,
                               const LayoutOptions& options);

// Whether pages can move from one to the other: same model layers, and group by group the same
// heads, head size, dtype, kind. Slices, page sizes, orders and places may differ.
// invalid_argument, whose context names the first difference.
Status compatible(const PageLayout& src, const PageLayout& dst);

}  // namespace kvl
