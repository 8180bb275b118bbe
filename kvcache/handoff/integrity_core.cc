// What an endpoint does about checksums: its wish, their cost, and telling what they found.
#include "kvcache/handoff/core.h"
#include "kvl/log.h"

namespace kvl::handoff {

CrcChoice Core::crc_wish() const {
  if (config.crc == "all") return {CrcMode::all, 1};
  if (config.crc == "sampled") {
    return {CrcMode::sampled, static_cast<std::uint32_t>(config.crc_sample)};
  }
  if (config.crc == "off" || !cpu_readable) return {};
  return {CrcMode::automatic, crc_cost.every()};
}

std::vector<std::uint32_t> Core::take_checksums(std::span<const PageOp> ops, CrcChoice choice,
                                                std::uint64_t room, std::uint32_t seq) {
  if (choice.mode == CrcMode::off) return {};
  const std::int64_t begin_ns = clock.now_ns();
  std::uint64_t bytes = 0;
  std::vector<std::uint32_t> crcs = checksums(ops, rank.regions, choice, room, seq, &bytes);
  crc_cost.checked(clock.now_ns() - begin_ns, bytes);
  metrics.crc_runs.add(crcs.size());
  return crcs;
}

std::string Core::path_name(RailSet rails) const {
  std::string name;
  for (std::size_t i = 0; i < all_rails.size() && i < 64; ++i) {
    if ((rails >> i & 1U) == 0) continue;
    name += (name.empty() ? "" : "+") + all_rails[i].transport + "/" + all_rails[i].device;
  }
  return name.empty() ? "unknown" : name.substr(0, kPathBytesMax);
}

void Core::note_corrupt(HandoffSide side, PeerHandle peer, std::uint64_t room, std::uint32_t seq,
                        const std::string& path, bool again) {
  const std::string name = peer_name(peer);
  metrics.corrupt.add({to_string(side)}, {name, path});
  log(LogLevel::warning, "handoff.corrupt",
      {{"code", kvl::to_string(Code::corrupt)},
       {"side", to_string(side)},
       {"peer", name},
       {"path", path},
       {"room", room},
       {"segment", seq},
       {"then", again ? "failed" : "moved again"},
       {"hint",
        "bytes changed on the way: look at memory errors (edac), NIC and driver of the path"}});
}

void Core::note_moved(const Segment& segment, Code code) {
  const std::uint64_t bytes = code == Code::ok ? segment.plan.bytes : 0;
  crc_cost.ended(clock.now_ns(), bytes);
  publish_crc();
}

void Core::publish_crc() {
  const CrcChoice wish = crc_wish();
  const std::uint32_t every = wish.mode == CrcMode::off ? 0 : wish.sample;
  metrics.crc_cost.store(crc_cost.cost(), std::memory_order_relaxed);
  if (metrics.crc_every.exchange(every, std::memory_order_relaxed) == every) return;
  log(LogLevel::info, "handoff.crc",
      {{"setting", config.crc},
       {"one_run_in", every},
       {"cost", crc_cost.cost()},
       {"why", !cpu_readable          ? "memory that the CPU cannot read"
               : config.crc != "auto" ? "as set"
               : crc_cost.cost() > 0  ? "measured: of the time in which bytes move"
                                      : "not measured yet: by what the CPU has"}});
}

}  // namespace kvl::handoff
