// Wire form of PageLayout; byte offsets in docs/wire/page_layout.md.
#include "kvcache/layout/le_bytes.h"
#include "kvl/page_layout.h"

namespace kvl {
namespace {

constexpr std::uint32_t kMagic = 0x4C50564B;  // "KVPL"
constexpr std::uint16_t kVersion = 1;
constexpr std::uint8_t kFlagMla = 1;
constexpr std::size_t kHeaderBytes = 32;
constexpr std::size_t kGroupBytes = 40;
constexpr std::size_t kPlaceBytes = 12;

void put_group(std::vector<std::byte>& out, const LayoutGroup& g) {
  put_le(out, g.layers.first);
  put_le(out, g.layers.count);
  put_le(out, g.kv_heads);
  put_le(out, g.head_dim);
  put_le(out, g.page_tokens);
  put_le(out, g.page_count);
  put_le(out, static_cast<std::uint8_t>(g.dtype));
  put_le(out, static_cast<std::uint8_t>(g.token_order));
  put_le(out, g.mla ? kFlagMla : std::uint8_t{0});
  put_le(out, std::uint8_t{0});
  put_le(out, std::uint32_t{0});
  put_le(out, g.page_stride);
  for (const std::vector<TensorPlace>* places : {&g.k, &g.v}) {
    for (const TensorPlace& place : *places) {
      put_le(out, place.region);
      put_le(out, place.offset);
    }
  }
}

Status get_group(LeReader& in, LayoutGroup& g) {
  if (in.left() < kGroupBytes) return {Code::corrupt, "layout: cut short"};
  g.layers.first = in.get<std::uint32_t>();
  g.layers.count = in.get<std::uint32_t>();
  g.kv_heads = in.get<std::uint32_t>();
  g.head_dim = in.get<std::uint32_t>();
  g.page_tokens = in.get<std::uint32_t>();
  g.page_count = in.get<std::uint32_t>();
  g.dtype = static_cast<Dtype>(in.get<std::uint8_t>());
  g.token_order = static_cast<TokenOrder>(in.get<std::uint8_t>());
  const auto flags = in.get<std::uint8_t>();
  const auto zero8 = in.get<std::uint8_t>();
  const auto zero32 = in.get<std::uint32_t>();
  if (flags > kFlagMla || zero8 != 0 || zero32 != 0) {
    return {Code::corrupt, "layout: reserved bits set"};
  }
  g.mla = flags == kFlagMla;
  g.page_stride = in.get<std::uint64_t>();
  // Bounded before anything is allocated: a count from outside is only believed if its bytes are
  // there.
  const std::size_t parts = g.mla ? 1 : 2;
  if (g.layers.count > PageLayout::kLayersMax || in.left() < parts * g.layers.count * kPlaceBytes) {
    return {Code::corrupt, "layout: cut short"};
  }
  for (std::size_t part = 0; part < parts; ++part) {
    std::vector<TensorPlace>& places = part == 0 ? g.k : g.v;
    places.resize(g.layers.count);
    for (TensorPlace& place : places) {
      place.region = in.get<std::uint32_t>();
      place.offset = in.get<std::uint64_t>();
    }
  }
  return {};
}

}  // namespace

std::vector<std::byte> PageLayout::encode() const {
  std::size_t bytes = kHeaderBytes;
  for (const LayoutGroup& g : groups_) {
    bytes += kGroupBytes + (g.k.size() + g.v.size()) * kPlaceBytes;
  }
  std::vector<std::byte> out;
  out.reserve(bytes);
  put_le(out, kMagic);
  put_le(out, kVersion);
  put_le(out, static_cast<std::uint16_t>(groups_.size()));
  put_le(out, static_cast<std::uint32_t>(bytes));
  put_le(out, model_layers_);
  put_le(out, slice_.tp_size);
  put_le(out, slice_.tp_rank);
  put_le(out, slice_.pp_size);
  put_le(out, slice_.pp_rank);
  for (const LayoutGroup& g : groups_) put_group(out, g);
  return out;
}

Result<PageLayout> PageLayout::decode(std::span<const std::byte> bytes) {
  LeReader in(bytes);
  const auto magic = in.get<std::uint32_t>();
  const auto version = in.get<std::uint16_t>();
  const auto group_count = in.get<std::uint16_t>();
  const auto total = in.get<std::uint32_t>();
  if (!in.ok() || magic != kMagic) return Status(Code::corrupt, "layout: not a page layout");
  if (version != kVersion) return Status(Code::unsupported, "layout: unknown version");
  if (total != bytes.size()) return Status(Code::corrupt, "layout: length does not match");
  const auto model_layers = in.get<std::uint32_t>();
  ParallelSlice slice;
  slice.tp_size = in.get<std::uint32_t>();
  slice.tp_rank = in.get<std::uint32_t>();
  slice.pp_size = in.get<std::uint32_t>();
  slice.pp_rank = in.get<std::uint32_t>();
  if (!in.ok()) return Status(Code::corrupt, "layout: cut short");
  if (group_count > kGroupsMax) return Status(Code::corrupt, "layout: too many groups");
  std::vector<LayoutGroup> groups(group_count);
  for (LayoutGroup& group : groups) KVL_TRY(get_group(in, group));
  if (in.left() != 0) return Status(Code::corrupt, "layout: bytes left over");
  return create(model_layers, slice, std::move(groups));
}

}  // namespace kvl
