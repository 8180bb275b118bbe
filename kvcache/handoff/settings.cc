// Settings of handoffs, names of their enums, and who talks to whom.
#include <algorithm>

#include "kvl/handoff.h"

namespace kvl {

std::vector<Setting> handoff_settings() {
  using C = HandoffConfig;
  return {
      setting<&C::crc>("handoff.crc", "", 0, 0,
                       "CRC-32C of page runs, checked before delivery: auto, off, sampled or all"),
      setting<&C::crc_sample>("handoff.crc_sample", "", 1, 1 << 20,
                              "sampled: one run in so many, and the first of each segment"),
      setting<&C::deadline_ms>("handoff.deadline_ms", "ms", 1, 86'400'000,
                               "from opening a handoff to its end, when it names none"),
      setting<&C::abort_ms>("handoff.abort_ms", "ms", 1, 600'000,
                            "how long transfers of an ended handoff may take to stop"),
      setting<&C::early_max>("handoff.early_max", "", 1, 1 << 20,
                             "messages kept for rooms that are not open here yet"),
      setting<&C::early_ms>("handoff.early_ms", "ms", 1, 600'000,
                            "how long they, and outcomes of ended rooms, are kept"),
      setting<&C::metadata_bytes_max>("handoff.metadata_bytes_max", "bytes", 0,
                                      kHandoffMetadataBytesMax,
                                      "most metadata that prefill may send with its commit"),
      setting<&C::segment_bytes>("handoff.segment_bytes", "bytes", 4096, 1 << 30,
                                 "layers are joined to transfers of about this size"),
  };
}

std::string_view to_string(HandoffMode mode) {
  constexpr std::string_view kNames[] = {"push", "pull", "best"};
  return kNames[static_cast<std::size_t>(mode)];
}
std::string_view to_string(HandoffSide side) {
  return side == HandoffSide::prefill ? "prefill" : "decode";
}

Result<std::vector<HandoffRoute>> handoff_sources(const ModelGeometry& geometry,
                                                  const ParallelSizes& src,
                                                  const ParallelSizes& dst,
                                                  std::uint32_t dst_rank) {
  const Result<std::vector<RankPair>> moving = rank_pairs(geometry, src, dst);
  if (!moving.ok()) return moving.status();
  const std::uint32_t src_ranks = src.tp_size * src.pp_size;
  const std::uint32_t dst_ranks = dst.tp_size * dst.pp_size;
  if (dst_rank >= dst_ranks) return Status{Code::invalid_argument, "no such decode rank"};
  std::vector<HandoffRoute> routes;
  for (std::uint32_t s = 0; s < src_ranks; ++s) {
    const auto mine = [s](const RankPair& pair) { return pair.src == s; };
    const auto accepts = static_cast<std::uint32_t>(std::ranges::count_if(*moving, mine));
    const bool named = accepts == 0
                           ? s % dst_ranks == dst_rank
                           : std::ranges::find(*moving, RankPair{s, dst_rank}) != moving->end();
    if (named) routes.push_back({s, std::max(accepts, 1U)});
  }
  return routes;
}

}  // namespace kvl
