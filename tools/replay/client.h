// Plays a trace against a router: an open loop, every request at its time, answers read as streams.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tools/replay/outcome.h"
#include "tools/replay/trace.h"

namespace kvl::replay {

struct ClientOptions {
  std::uint16_t router_port = 0;     // on loopback
  double time_scale = 1;             // arrivals are this much faster
  std::uint32_t inflight_max = 256;  // requests beyond wait here; their time goes on
  double request_timeout_s = 600;
};

struct Progress {
  double seconds = 0;
  std::uint64_t sent = 0, ended = 0, ok = 0, total = 0;
  std::uint64_t bytes = 0, pages = 0, pages_wrong = 0;
};

// One outcome per row. `progress` is called about twice a second; false from `go_on` (asked as
// often) stops the replay: what has not ended stays so.
std::vector<Outcome> play(const Trace& trace, const ClientOptions& options,
                          const std::function<void(const Progress&)>& progress,
                          const std::function<bool()>& go_on);

}  // namespace kvl::replay
