// Where a request's time went: milestones of its last attempt, one after the other.
#include <algorithm>
#include <optional>

#include "tools/trace/timeline.h"

namespace kvl::tools::tracing {
namespace {

struct Milestone {
  std::string_view side, stage;
  std::string_view meaning;  // of the time since the milestone before
};

// In the order of a good life. Those that a request did not reach, or reached out of this order
// (decode reserves while prefill is still looking at the request), are passed over.
constexpr Milestone kMilestones[] = {
    {"router", "received", ""},
    {"router", "forwarded", "choosing workers"},
    {"prefill", "queued", "on the way to the prefill worker"},
    {"decode", "queued", "on the way to the decode worker"},
    {"decode", "resolved", "looking the prefill worker up"},
    {"decode", "reserved", "waiting for pages at decode"},
    {"prefill", "prefill_started", "waiting for prefill: its queue and pages"},
    {"prefill", "prefill_done", "computing the prompt"},
    {"decode", "all_layers", "moving what was not hidden behind computing"},
    {"decode", "committed", "agreeing on the commit"},
    {"decode", "first_token", "taking up the request at decode"},
    {"decode", "ended", "generating the rest of the output"},
    {"router", "answered", "the answer's way to the client"},
};

// The last attempt is what the client saw; with several ranks or sequences the last one counts.
std::optional<std::int64_t> reached(const Request& request, std::uint64_t room,
                                    const Milestone& milestone) {
  std::optional<std::int64_t> at;
  for (const Line& line : request.lines) {
    if (line.room == room && line.side == milestone.side && line.stage == milestone.stage) {
      at = line.at_ns;
    }
  }
  return at;
}

std::string name(const Milestone& milestone) {
  return std::string(milestone.side) + " " + std::string(milestone.stage);
}

std::uint64_t last_room(const Request& request) {
  return request.rooms.empty() ? 0 : request.rooms.back();
}

void add_spans(const Request& request, Summary& summary) {
  const std::uint64_t room = last_room(request);
  std::string from = "first line";
  std::int64_t at = request.lines.front().at_ns;
  for (const Milestone& milestone : kMilestones) {
    const auto when = reached(request, room, milestone);
    if (!when || *when < at) continue;
    if (*when > at) {
      const bool attempts = summary.spans.empty() && request.rooms.size() > 1;
      std::string meaning = attempts ? "earlier attempts" : std::string(milestone.meaning);
      summary.spans.push_back({from, name(milestone), std::move(meaning), *when - at});
    }
    from = name(milestone);
    at = *when;
  }
  const Line& last = request.lines.back();
  if (last.at_ns > at) {
    summary.spans.push_back({from, last.side + " " + last.stage, "afterwards", last.at_ns - at});
  }
}

void count_layers(const Request& request, Summary& summary) {
  const std::uint64_t room = last_room(request);
  const auto computed = reached(request, room, {"prefill", "prefill_done", ""});
  for (const Line& line : request.lines) {
    if (line.room != room || line.side != "decode" || line.stage != "layer" || line.rank != 0) {
      continue;
    }
    ++summary.layers;
    if (computed && line.at_ns < *computed) ++summary.layers_under_compute;
  }
}

std::string outcome_of(const Request& request) {
  const Line* last = nullptr;
  for (const char* const side : {"router", "decode", "local", "prefill"}) {
    for (const Line& line : request.lines) {
      const bool end = line.stage == "answered" || line.stage == "ended";
      if (end && line.side == side) last = &line;
    }
    if (last != nullptr) return last->code.empty() ? "ok" : last->code;
  }
  return "not ended";
}

// An effect before its cause says by how much two clocks differ at least.
void compare_clocks(const Request& request, Summary& summary) {
  struct Order {
    Milestone cause, effect;
  };
  constexpr Order kOrders[] = {
      {{"router", "received", ""}, {"prefill", "queued", ""}},
      {{"router", "received", ""}, {"decode", "queued", ""}},
      {{"decode", "reserved", ""}, {"prefill", "prefill_started", ""}},
      {{"prefill", "all_layers", ""}, {"decode", "all_layers", ""}},
      {{"decode", "committed", ""}, {"prefill", "committed", ""}},
      {{"decode", "first_token", ""}, {"router", "answered", ""}},
  };
  const std::uint64_t room = last_room(request);
  for (const Order& order : kOrders) {
    const auto cause = reached(request, room, order.cause);
    const auto effect = reached(request, room, order.effect);
    if (!cause || !effect || *effect >= *cause) continue;
    summary.notes.push_back(name(order.effect) + " is " +
                            std::to_string((*cause - *effect) / 1000) + " us before " +
                            name(order.cause) + ": the wall clocks differ by at least that");
  }
}

}  // namespace

Summary summarize(const Request& request) {
  Summary summary;
  if (request.lines.empty()) return summary;
  summary.total_ns = request.lines.back().at_ns - request.lines.front().at_ns;
  summary.outcome = outcome_of(request);
  add_spans(request, summary);
  count_layers(request, summary);
  compare_clocks(request, summary);
  if (request.rooms.size() > 1) {
    summary.notes.push_back(std::to_string(request.rooms.size()) +
                            " attempts or sequences, a room each");
  }
  return summary;
}

}  // namespace kvl::tools::tracing
