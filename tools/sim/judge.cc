// The agreement of all ranks of a request.
#include "tools/sim/judge.h"

#include <algorithm>

namespace kvl::simulation {

void Judge::violate(const std::string& what) {
  if (!violation_.empty()) return;
  violation_ = what + " (at " + std::to_string(world_.now_ns() / 1000) + " us)";
  world_.say(0, [&] { return "VIOLATION " + what; });
}

void Judge::opened(const Request& request, HandoffSide side, std::uint32_t rank) {
  Verdict& verdict = verdicts_[request.room];
  (side == HandoffSide::prefill ? verdict.prefill : verdict.decode)[rank].opened = true;
}

Judge::Rank& Judge::end_of(const Request& request, HandoffSide side, std::uint32_t rank) {
  Verdict& verdict = verdicts_[request.room];
  Rank& mine = (side == HandoffSide::prefill ? verdict.prefill : verdict.decode)[rank];
  if (!mine.opened || mine.committed || mine.failed) {
    violate("ended twice: " + std::string(kvl::to_string(side)) + " rank " + std::to_string(rank) +
            " of room " + std::to_string(request.room));
  }
  return mine;
}

void Judge::arrived(const Request& request, std::uint32_t decode_rank) {
  verdicts_[request.room].decode[decode_rank].arrived = true;
}

// Nobody commits unless everything has arrived everywhere; the lead and prefill commit last.
void Judge::committed(const Request& request, HandoffSide side, std::uint32_t rank) {
  end_of(request, side, rank).committed = true;
  Verdict& verdict = verdicts_[request.room];
  const auto all_decode = [&](bool Rank::*what, bool but_me) {
    for (std::uint32_t d = 0; d < scenario_.decode.ranks(); ++d) {
      if (!(but_me && d == rank) && !(verdict.decode[d].*what)) return false;
    }
    return true;
  };
  const std::string room = " of room " + std::to_string(request.room);
  if (side == HandoffSide::decode) {
    if (!all_decode(&Rank::arrived, false)) {
      violate("partial commit: decode rank " + std::to_string(rank) + room +
              " committed before every rank had everything");
    }
    if (rank == 0 && !all_decode(&Rank::committed, true)) {
      violate("partial commit: the lead" + room + " committed before the others");
    }
    return;
  }
  const auto size = [](const Side& s) { return ParallelSizes{s.tp, s.pp}; };
  for (std::uint32_t d = 0; d < scenario_.decode.ranks(); ++d) {
    const auto sources =
        handoff_sources(scenario_.geometry, size(scenario_.prefill), size(scenario_.decode), d);
    const bool named = std::ranges::any_of(
        *sources, [rank](const HandoffRoute& route) { return route.src_rank == rank; });
    if (named && !verdict.decode[d].committed) {
      violate("partial commit: prefill rank " + std::to_string(rank) + room +
              " committed before decode rank " + std::to_string(d));
    }
  }
}

void Judge::failed(const Request& request, HandoffSide side, std::uint32_t rank, bool safe) {
  Rank& mine = end_of(request, side, rank);
  mine.failed = true;
  mine.unsafe = !safe;
}

void Judge::check_all_done() {
  for (const Request& request : scenario_.requests) {
    const Verdict& verdict = verdicts_[request.room];
    for (const auto* ranks : {&verdict.prefill, &verdict.decode}) {
      for (const auto& [rank, state] : *ranks) {
        if (!state.committed) {
          return violate("lost: room " + std::to_string(request.room) +
                         " did not arrive although nothing was broken");
        }
      }
    }
  }
}

void Judge::count(RunReport& report) const {
  report.requests = static_cast<std::uint32_t>(scenario_.requests.size());
  for (const auto& [room, verdict] : verdicts_) {
    bool committed = !verdict.decode.empty(), unsafe = false, opened = false;
    for (const auto* ranks : {&verdict.prefill, &verdict.decode}) {
      for (const auto& [rank, state] : *ranks) {
        opened = opened || state.opened;
        committed = committed && state.committed;
        unsafe = unsafe || state.unsafe;
      }
    }
    ++(committed ? report.done : opened ? report.failed : report.refused);
    if (unsafe) ++report.quarantined;
  }
}

std::vector<std::byte> Judge::metadata(const Request& request, std::uint32_t rank) {
  std::vector<std::byte> bytes(1 + request.content % 23);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(request.content >> (i % 8 * 8) ^ rank ^ i);
  }
  return bytes;
}

}  // namespace kvl::simulation
