// Writes one JSON line per stage with one write() to a file opened for appending: lines of several
// threads and processes never mix, and nothing is lost with a process that is killed.
#include "kvl/trace.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "kvl/log.h"

namespace kvl {
namespace {

constexpr std::array<std::string_view, 22> kStages = {
    "received",     "forwarded",   "answering", "answered",   "registered",
    "looked_up",    "queued",      "resolved",  "reserved",   "prefill_started",
    "prefill_done", "first_token", "ended",     "released",   "opened",
    "offered",      "accepted",    "layer",     "all_layers", "committed",
    "failed",       "quiet"};
static_assert(kStages.size() == static_cast<std::size_t>(Stage::quiet) + 1);

enum class Action : std::uint8_t { stop, kill, exit, hang };
constexpr std::array<std::string_view, 4> kActions = {"stop", "kill", "exit", "hang"};

struct TraceState {
  int fd = -1;
  std::string process;
  std::atomic<bool> torn{false};  // the file may end in part of a line
  std::atomic<std::uint64_t> dropped{0};
  std::atomic<bool> told{false};
  // The stop: at the stop_left-th time that stop_stage is reached.
  bool stops = false;
  Stage stop_stage = Stage::received;
  Action stop_action = Action::stop;
  std::atomic<std::int64_t> stop_left{0};
};

// Leaked on purpose: threads may trace while the process exits.
TraceState& state() {
  static TraceState& instance = *new TraceState;
  return instance;
}

std::int64_t clock_ns(clockid_t clock) {
  timespec t{};
  ::clock_gettime(clock, &t);
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

// A line has room for the longest event: texts are cut.
class Line {
 public:
  void raw(std::string_view text) {
    const std::size_t bytes = std::min(text.size(), text_.size() - size_);
    std::memcpy(text_.data() + size_, text.data(), bytes);
    size_ += bytes;
  }
  template <typename Number>
  void number(std::string_view key, Number value) {
    std::array<char, 24> digits;
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
    raw(key);
    raw({digits.data(), static_cast<std::size_t>(end - digits.data())});
  }
  void text(std::string_view key, std::string_view value) {
    constexpr std::size_t kMost = 200;
    if (value.size() > kMost) {
      std::size_t end = kMost;
      while (end > 0 && (static_cast<unsigned char>(value[end]) & 0xc0) == 0x80) --end;
      value = value.substr(0, end);
    }
    raw(key);
    raw("\"");
    for (const char c : value) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\') {
        raw("\\");
        raw({&c, 1});
      } else if (byte < 0x20 || byte == 0x7f) {
        std::array<char, 8> escape;
        std::snprintf(escape.data(), escape.size(), "\\u%04x", unsigned{byte});
        raw({escape.data(), 6});
      } else {
        raw({&c, 1});
      }
    }
    raw("\"");
  }
  std::string_view view() const { return {text_.data(), size_}; }

 private:
  std::array<char, 4096> text_;  // three texts of 200 bytes, each of six when escaped
  std::size_t size_ = 0;
};

void drop(TraceState& s, int error) {
  s.dropped.fetch_add(1, std::memory_order_relaxed);
  if (s.told.exchange(true)) return;
  log(LogLevel::warning, "trace.dropped",
      {{"code", to_string(Code::exhausted)},
       {"why", std::strerror(error)},
       {"hint", "make room where trace.file is; stages are lost until then, requests are not"}});
}

void append(TraceState& s, std::string_view line) {
  // After part of a line the next one begins on its own.
  if (!s.torn.load(std::memory_order_relaxed)) line.remove_prefix(1);
  const ssize_t written = ::write(s.fd, line.data(), line.size());
  if (written < 0) return drop(s, errno);
  const bool whole = static_cast<std::size_t>(written) == line.size();
  s.torn.store(!whole, std::memory_order_relaxed);
  if (!whole) return drop(s, ENOSPC);
  s.told.store(false, std::memory_order_relaxed);
}

void act(Action action) {
  switch (action) {
    case Action::stop:
      ::raise(SIGSTOP);
      return;
    case Action::kill:
      ::raise(SIGKILL);
      return;
    case Action::exit:
      ::_exit(86);
    case Action::hang:  // this thread only: the others still answer
      for (;;) ::pause();
  }
}

template <std::size_t N>
int find(const std::array<std::string_view, N>& words, std::string_view word) {
  for (std::size_t i = 0; i < N; ++i) {
    if (words[i] == word) return static_cast<int>(i);
  }
  return -1;
}

template <std::size_t N>
std::string list(const std::array<std::string_view, N>& words) {
  std::string text;
  for (const std::string_view word : words) text.append(text.empty() ? "" : ", ").append(word);
  return text;
}

// "stage[:n]:action"
Status parse_stop(std::string_view text, TraceState& s, std::string& why) {
  const auto bad = [&why](std::string sentence) {
    why = "testing.stop_at is STAGE[:N]:ACTION: " + std::move(sentence);
    return Status{Code::invalid_argument, "testing.stop_at"};
  };
  const std::size_t first = text.find(':');
  const std::size_t last = text.rfind(':');
  if (first == std::string_view::npos) return bad("no action was given");
  const int stage = find(kStages, text.substr(0, first));
  if (stage < 0) return bad("no such stage; there are " + list(kStages));
  const int action = find(kActions, text.substr(last + 1));
  if (action < 0) return bad("no such action; there are " + list(kActions));
  std::int64_t count = 1;
  if (first != last) {
    const std::string_view digits = text.substr(first + 1, last - first - 1);
    const char* const end = digits.data() + digits.size();
    const auto [rest, error] = std::from_chars(digits.data(), end, count);
    if (error != std::errc{} || rest != end || count < 1) return bad("N counts from 1");
  }
  s.stops = true;
  s.stop_stage = static_cast<Stage>(stage);
  s.stop_action = static_cast<Action>(action);
  s.stop_left = count;
  return {};
}

std::string expand(std::string_view file) {
  std::string path(file);
  if (const std::size_t at = path.find("%p"); at != std::string::npos) {
    path.replace(at, 2, std::to_string(::getpid()));
  }
  return path;
}

}  // namespace

namespace detail {

std::atomic<bool> tracing{false};

void write_trace(const TraceEvent& event) {
  TraceState& s = state();
  if (s.fd >= 0) {
    Line line;
    line.number("\n{\"wall_ns\":", clock_ns(CLOCK_REALTIME));
    line.number(",\"mono_ns\":", clock_ns(CLOCK_MONOTONIC));
    line.number(",\"pid\":", ::getpid());
    line.text(",\"process\":", s.process);
    line.text(",\"stage\":", to_string(event.stage));
    line.number(",\"room\":", event.room);
    if (event.before != 0) line.number(",\"before\":", event.before);
    if (!event.rid.empty()) line.text(",\"rid\":", event.rid);
    line.text(",\"side\":", event.side);
    if (event.rank != 0) line.number(",\"rank\":", event.rank);
    if (event.layers != 0) {
      line.number(",\"layer\":", event.layer);
      line.number(",\"layers\":", event.layers);
    }
    if (event.code != Code::ok) line.text(",\"code\":", to_string(event.code));
    if (!event.what.empty()) line.text(",\"what\":", event.what);
    line.raw("}\n");
    append(s, line.view());
  }
  if (s.stops && event.stage == s.stop_stage && s.stop_left.fetch_sub(1) == 1) act(s.stop_action);
}

}  // namespace detail

std::string_view to_string(Stage stage) {
  const auto index = static_cast<std::size_t>(stage);
  return index < kStages.size() ? kStages[index] : "unknown";
}

std::span<const Setting> trace_settings() {
  using C = TraceConfig;
  static const Setting rows[] = {
      setting<&C::file>("trace.file", "", 0, 0,
                        "append a line of JSON for each stage of a request to this file; %p is the "
                        "process id; empty: off"),
      setting<&C::testing>("testing.enabled", "", 0, 0,
                           "let testing.* take effect: for tests of kvlane, never in service"),
      setting<&C::stop_at>("testing.stop_at", "", 0, 0,
                           "STAGE[:N]:ACTION: stop, kill, exit or hang this process when it "
                           "reaches the stage for the N-th time"),
  };
  return rows;
}

Status open_trace(const TraceConfig& config, std::string_view process, std::string* error) {
  TraceState& s = state();
  std::string why;
  const auto fail = [&](const Status& status) {
    if (error != nullptr) *error = why;
    return status;
  };
  if (!config.stop_at.empty()) {
    if (!config.testing) {
      why =
          "testing.stop_at would stop this process in the middle of its work; it is refused "
          "unless testing.enabled is true";
      return fail({Code::invalid_argument, "testing.stop_at without testing.enabled"});
    }
    if (const Status status = parse_stop(config.stop_at, s, why); !status.ok()) {
      return fail(status);
    }
    log(LogLevel::warning, "testing.stop_at",
        {{"at", config.stop_at}, {"hint", "not for service: unset testing.enabled"}});
  }
  if (!config.file.empty()) {
    const std::string path = expand(config.file);
    // Non-blocking: a FIFO without a reader must not hold the start up, nor a slow one a request.
    s.fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                  0640);
    if (s.fd < 0) {
      why = "trace.file '" + path + "': " + std::strerror(errno);
      return fail({Code::unavailable, "open trace.file", errno});
    }
    // A limit on the size of files (ulimit -f) is a full disk too, not a death.
    ::signal(SIGXFSZ, SIG_IGN);
    s.process = process;
    // A process that was killed, or a full disk, may have left part of a line.
    struct stat info {};
    s.torn = ::fstat(s.fd, &info) == 0 && info.st_size > 0;
  }
  detail::tracing = s.fd >= 0 || s.stops;
  return {};
}

std::uint64_t trace_lines_dropped() { return state().dropped.load(std::memory_order_relaxed); }

}  // namespace kvl
