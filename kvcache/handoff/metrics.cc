// The counters of an endpoint, under their public names.
#include "kvcache/handoff/core.h"

namespace kvl::handoff {

void Metrics::visit(MetricVisitor& visitor) const {
  const auto number = [](const Counter& counter) { return static_cast<double>(counter.value()); };
  for (const HandoffSide side : {HandoffSide::prefill, HandoffSide::decode}) {
    const Side& m = sides[static_cast<std::size_t>(side)];
    const MetricLabels labels{{"side", std::string(to_string(side))}};
    visitor.counter("kvlane_handoffs_opened_total", "Handoffs opened", labels, number(m.opened));
    MetricLabels ended = labels;
    ended.emplace_back("outcome", "");
    const auto outcome = [&](std::string_view name, const Counter& counter) {
      ended.back().second = std::string(name);
      visitor.counter("kvlane_handoffs_ended_total", "Handoffs ended, by outcome", ended,
                      number(counter));
    };
    outcome("committed", m.committed);
    for (std::size_t code = 1; code < kCodes; ++code) {
      if (m.failed[code].value() > 0)
        outcome(kvl::to_string(static_cast<Code>(code)), m.failed[code]);
    }
    visitor.counter("kvlane_handoff_pages_unsafe_total",
                    "Handoffs that failed before their pages were proven quiet", labels,
                    number(m.unsafe));
    visitor.counter("kvlane_handoff_pages_released_total",
                    "… and whose pages were proven quiet later", labels, number(m.released));
    visitor.counter("kvlane_handoff_bytes_total", "KV bytes moved by handoffs", labels,
                    number(m.bytes));
    visitor.counter("kvlane_handoff_segments_total", "Segments moved by handoffs", labels,
                    number(m.segments));
    visitor.counter("kvlane_handoff_duration_seconds_total",
                    "Time from open to commit of committed handoffs, summed", labels,
                    number(m.elapsed_us) * 1e-6);
  }
  visitor.counter("kvlane_handoff_crc_runs_total", "Runs whose CRC-32C was computed", {},
                  number(crc_runs));
  corrupt.visit(visitor);
  for (const HandoffSide side : {HandoffSide::prefill, HandoffSide::decode}) {
    const auto at = static_cast<std::size_t>(side);
    const auto retries = [&](const char* outcome, const Counter& counter) {
      visitor.counter(
          "kvlane_handoff_crc_retries_total", "Segments that were moved again, by what came of it",
          {{"side", std::string(to_string(side))}, {"outcome", outcome}}, number(counter));
    };
    retries("ok", crc_retries_ok[at]);
    retries("failed", crc_retries_failed[at]);
  }
  visitor.gauge("kvlane_handoff_crc_every", "One run in so many is checked by wish; 0: none", {},
                static_cast<double>(crc_every.load(std::memory_order_relaxed)));
  visitor.gauge("kvlane_handoff_crc_cost_ratio",
                "Time that checksums of all runs take, of the time in which bytes move; 0: unknown",
                {}, crc_cost.load(std::memory_order_relaxed));
  // A series appears with its first; the one of `always` is there from the beginning.
  const auto by_cause = [&](std::string_view name, std::string_view help, Code always,
                            const std::array<Counter, kCodes>& counters) {
    for (std::size_t i = 0; i < kCodes; ++i) {
      const auto code = static_cast<Code>(i);
      if (code != always && counters[i].value() == 0) continue;
      visitor.counter(name, help, {{"cause", std::string(kvl::to_string(code))}},
                      number(counters[i]));
    }
  };
  by_cause("kvlane_handoff_messages_bad_total",
           "Messages refused as malformed or misplaced, by cause", Code::invalid_argument,
           bad_messages);
  visitor.counter("kvlane_handoff_messages_stale_total", "Messages for handoffs that have ended",
                  {}, number(stale_messages));
  visitor.counter("kvlane_handoff_early_kept_total", "Messages kept for rooms not open yet", {},
                  number(early_kept));
  visitor.counter("kvlane_handoff_early_dropped_total", "Messages for rooms not open yet, dropped",
                  {}, number(early_dropped));
  visitor.counter("kvlane_handoff_peers_ready_total", "Greetings that succeeded", {},
                  number(peers_ready));
  by_cause("kvlane_handoff_peers_refused_total", "Peers that were refused, by cause",
           Code::unsupported, peers_refused);
  visitor.gauge("kvlane_handoff_rooms", "Handoffs that hold pages", {},
                static_cast<double>(rooms.load(std::memory_order_relaxed)));
}

}  // namespace kvl::handoff
