// Wire form of PageLayout; byte offsets in docs/wire/page_layout.md.
#include "kvl/page_layout.h"
#include "transport/base/wire.h"

namespace kvl {
namespace {

constexpr std::uint32_t kMagic = 0x4C50564B;  // "KVPL"
constexpr std::uint16_t kVersion = 1;
constexpr std::uint8_t kFlagMla = 1;
constexpr std::size_t kHeaderBytes = 32;
constexpr std::size_t kGroupBytes = 40;
constexpr std::size_t kPlaceBytes = 12;

void put_group(WireWriter& out, const LayoutGroup& g) {
  out.put(g.layers.first).put(g.layers.count).put(g.kv_heads).put(g.head_dim);
  out.put(g.page_tokens).put(g.page_count);
  out.put(g.dtype).put(g.token_order).put(g.mla ? kFlagMla : std::uint8_t{0});
  out.put(std::uint8_t{0}).put(std::uint32_t{0});
  out.put(g.page_stride);
  for (const std::vector<TensorPlace>* places : {&g.k, &g.v}) {
    for (const TensorPlace& place : *places) out.put(place.region).put(place.offset);
  }
}

Status get_group(WireReader& in, LayoutGroup& g) {
  if (in.left() < kGroupBytes) return {Code::corrupt, "layout: cut short"};
  g.layers.first = in.get<std::uint32_t>();
  g.layers.count = in.get<std::uint32_t>();
  g.kv_heads = in.get<std::uint32_t>();
  g.head_dim = in.get<std::uint32_t>();
  g.page_tokens = in.get<std::uint32_t>();
  g.page_count = in.get<std::uint32_t>();
  g.dtype = in.get<Dtype>();
  g.token_order = in.get<TokenOrder>();
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
  WireWriter out;
  out.put(kMagic).put(kVersion).put(static_cast<std::uint16_t>(groups_.size()));
  out.put(static_cast<std::uint32_t>(bytes)).put(model_layers_);
  out.put(slice_.tp_size).put(slice_.tp_rank).put(slice_.pp_size).put(slice_.pp_rank);
  for (const LayoutGroup& g : groups_) put_group(out, g);
  return out.take();
}

Result<PageLayout> PageLayout::decode(std::span<const std::byte> bytes) {
  WireReader in(bytes);
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
