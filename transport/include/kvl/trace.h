// Trace: the life of a request by its room and id, one line per stage, over all processes that had
// a part in it. `kvlane trace` puts the lines of several files together.
//
// Off by default; then a stage costs one load. On, it costs two clock reads and one write(). Stages
// are per request and per layer, never per page; no thread of the engine comes by here.
//
// The same points stop a program for tests (testing.stop_at), so that a fault can be placed exactly
// where it should strike. It needs testing.enabled beside it, from the same sources as any setting,
// and is refused without: a stray line in a file or environment cannot stop a service. What it can
// do, whoever sets a process's settings could do with kill(1).
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kvl/config.h"
#include "kvl/status.h"

namespace kvl {

// In the order of a good life. Names on the right of to_string() are what files hold.
enum class Stage : std::uint8_t {
  // router
  received,   // with a room: another follows for each attempt that gets a new one, see `before`
  forwarded,  // both workers have been asked
  answering,  // the first byte of an answer goes to the client
  answered,   // the client has what it gets; code and `what` say what that was
  // rendezvous; no room
  registered,  // a rank, named by `what`
  looked_up,   // an instance, named by `what`
  // worker
  queued,           // the request is known
  resolved,         // decode: knows where prefill is
  reserved,         // decode: has its pages
  prefill_started,  // has its pages; computing begins
  prefill_done,     // the whole prompt's KV is in place
  first_token,      // is known where the answer is made
  ended,            // code
  released,         // its pages are free, cached or quarantined
  // handoff
  opened,
  offered,     // prefill: answers a decode rank that has named its pages
  accepted,    // all ranks of the other side are there
  layer,       // prefill: sends `layers` layers from `layer` on; decode: all of `layer` is here
  all_layers,  // prefill: has sent everything; decode: everything is here and checked
  committed,
  failed,  // code
  quiet,   // after failed: nothing can touch the pages any more
};
std::string_view to_string(Stage stage);

struct TraceEvent {
  Stage stage = Stage::received;
  std::uint64_t room = 0;
  std::uint64_t before = 0;  // received: the room of the attempt before
  std::string_view rid;      // "": not known here
  std::string_view side;     // "router", "prefill", "decode", "local"
  std::uint32_t rank = 0;
  std::uint32_t layer = 0, layers = 0;  // layers 0: no layer is meant
  Code code = Code::ok;
  std::string_view what;  // for people
};

struct TraceConfig {
  std::string file;
  bool testing = false;
  std::string stop_at;
};
// trace.*, testing.*: of every program that serves.
std::span<const Setting> trace_settings();

// Once, by main(), before other threads. `process` names this program in the lines. Errors:
// invalid_argument (settings), unavailable (the file); `error` (optional) receives a sentence.
Status open_trace(const TraceConfig& config, std::string_view process,
                  std::string* error = nullptr);

namespace detail {
extern std::atomic<bool> tracing;
void write_trace(const TraceEvent& event);
}  // namespace detail

// Any thread. A line that cannot be written is dropped and counted; nothing waits for a disk that
// is full. The first one dropped in a row is logged.
inline bool tracing() { return detail::tracing.load(std::memory_order_relaxed); }
inline void trace(const TraceEvent& event) {
  if (tracing()) detail::write_trace(event);
}
std::uint64_t trace_lines_dropped();

}  // namespace kvl
