// What the operator is told of failures: one counter and one log line each.
#include "kvcache/handoff/core.h"
#include "kvl/failure.h"
#include "kvl/log.h"

namespace kvl::handoff {

std::string Core::peer_name(PeerHandle peer) const {
  const Result<PeerInfo> info = engine.describe(peer);
  return info.ok() && !info->address.empty() ? info->address : std::to_string(peer.value);
}

// Somebody who asked for the end has no failure to look into.
void Core::note_failed(HandoffSide side, std::uint64_t room, Code code, const std::string& reason) {
  log(code == Code::aborted ? LogLevel::info : LogLevel::warning, "handoff.failed",
      {{"side", to_string(side)},
       {"room", room},
       {"code", kvl::to_string(code)},
       {"why", reason},
       {"hint", remedy(code)}});
}

void Core::note_malformed(PeerHandle peer, const Status& why) {
  Metrics::count(metrics.bad_messages, why.code());
  log(LogLevel::warning, "handoff.message_malformed",
      {{"peer", peer_name(peer)},
       {"code", kvl::to_string(why.code())},
       {"why", why.context()},
       {"hint", "run one release on both sides"}});
}

// Not a warning: where a peer comes back or a room ends, messages cross.
void Core::note_misplaced(PeerHandle peer, Code code, const char* why) {
  Metrics::count(metrics.bad_messages, code);
  log(LogLevel::info, "handoff.message_misplaced",
      {{"peer", peer_name(peer)},
       {"code", kvl::to_string(code)},
       {"why", why},
       {"hint", "harmless now and then; if it goes on, run one release on both sides"}});
}

}  // namespace kvl::handoff
