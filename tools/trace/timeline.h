// The stages of requests, read from the trace files of several processes and put in one order.
#pragma once

#include <cstdint>
#include <istream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/status.h"

namespace kvl::tools::tracing {

// One line of a trace file (kvl/trace.h). Texts are as the process wrote them.
struct Line {
  std::int64_t wall_ns = 0, mono_ns = 0;
  std::int64_t at_ns = 0;  // on the common clock, see Traces::align()
  std::int64_t pid = 0;
  std::uint64_t room = 0, before = 0;
  std::uint32_t rank = 0, layer = 0, layers = 0;
  std::string process, stage, side, rid, code, what;

  std::string name() const { return process + " " + std::to_string(pid); }
};

// A request: its rooms (one per attempt), and every line of them in order of time.
struct Request {
  std::vector<std::uint64_t> rooms;  // in order of their first line
  std::string rid;                   // "": nobody said one
  std::vector<Line> lines;
};

// Between two milestones of the last attempt.
struct Span {
  std::string from, to;  // "decode reserved"
  std::string meaning;   // what the time is spent on
  std::int64_t ns = 0;
};

// What came of a request, and where its time went.
struct Summary {
  std::int64_t total_ns = 0;
  std::string outcome;                     // "ok", a code, or "not ended"
  std::vector<Span> spans;                 // one after the other; they add up to the whole
  std::uint32_t layers = 0;                // that arrived at decode, ranks counted once
  std::uint32_t layers_under_compute = 0;  // of them, before prefill had computed everything
  std::vector<std::string> notes;          // what looks odd, for people
};

class Traces {
 public:
  // Lines that are none (a process was killed in the middle of one) are counted, not fatal.
  void read(std::istream& in);
  // Puts the lines on one clock. Within a process the monotonic clock orders; processes are laid
  // side by side by the median of what their wall clocks said, so that a clock that was set while
  // one ran does not tear its lines apart.
  void align();

  // The request that has this room, or (a text that is no such room) this id. not_found.
  Result<Request> find(std::string_view room_or_rid) const;
  // Every request in order of its first line.
  std::vector<Request> all() const;

  std::size_t lines() const { return lines_.size(); }
  std::uint64_t bad_lines() const { return bad_lines_; }

 private:
  std::vector<Request> gather() const;

  std::vector<Line> lines_;
  std::uint64_t bad_lines_ = 0;
};

Summary summarize(const Request& request);

// For people; for programs; for chrome://tracing and ui.perfetto.dev.
std::string render_text(const Request& request, const Summary& summary);
std::string render_json(const Request& request, const Summary& summary);
std::string render_chrome(const std::vector<Request>& requests);

}  // namespace kvl::tools::tracing
