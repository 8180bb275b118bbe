// One sink for all events. Levels by subsystem and the limit of lines, looked at under a mutex only
// when a line may be written.
#include "kvl/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "kvl/clock.h"
#include "transport/base/log_limiter.h"

namespace kvl {
namespace {

struct LogState {
  std::mutex mutex;
  std::map<std::string, LogLevel, std::less<>> levels;  // by subsystem; "" is the default
  LogLimiter limiter;
  LogSink sink;
  std::shared_ptr<spdlog::logger> console;
};

// Leaked on purpose: threads may log while the process exits.
LogState& state() {
  static LogState& instance = *new LogState;
  return instance;
}

// The lowest level anybody asked for: the cheap test before the mutex.
std::atomic<LogLevel> lowest_level{LogLevel::warning};

bool parse_level(std::string_view word, LogLevel& out) {
  constexpr std::pair<std::string_view, LogLevel> words[] = {{"debug", LogLevel::debug},
                                                             {"info", LogLevel::info},
                                                             {"warning", LogLevel::warning},
                                                             {"error", LogLevel::error},
                                                             {"off", LogLevel::off}};
  for (const auto& [name, level] : words) {
    if (name == word) {
      out = level;
      return true;
    }
  }
  return false;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
    case LogLevel::off:
      return spdlog::level::off;
  }
  return spdlog::level::info;
}

bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

// The word by which lines of one event are told apart: from a closed set, unlike all other fields.
std::string_view cause_of(std::initializer_list<LogField> fields) {
  std::string_view cause;
  for (const LogField& field : fields) {
    if (field.key == "cause") return field.value;
    if (field.key == "code") cause = field.value;
  }
  return cause;
}

std::string render(std::string_view event, std::initializer_list<LogField> fields) {
  std::string line(event);
  for (const LogField& field : fields) {
    line.append(" ").append(field.key).append("=");
    // Values may be a peer's words: no line end and no escape sequence reaches a terminal.
    const bool plain =
        !field.value.empty() && std::none_of(field.value.begin(), field.value.end(), [](char c) {
          return c == ' ' || c == '"' || c == '=' || is_control(c);
        });
    if (plain) {
      line += field.value;
      continue;
    }
    line += '"';
    for (char c : field.value) {
      if (c == '"' || c == '\\') line += '\\';
      line += is_control(c) ? ' ' : c;
    }
    line += '"';
  }
  return line;
}

}  // namespace

void log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  if (level < lowest_level.load(std::memory_order_relaxed)) return;
  LogState& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  LogLevel wanted = LogLevel::warning;
  if (auto all = s.levels.find(""); all != s.levels.end()) wanted = all->second;
  const std::string_view subsystem = event.substr(0, event.find('.'));
  if (auto own = s.levels.find(subsystem); own != s.levels.end()) wanted = own->second;
  if (level < wanted || level == LogLevel::off) return;
  // Who asks for debug lines wants them all.
  std::uint64_t suppressed = 0;
  if (level != LogLevel::debug) {
    const auto admitted = s.limiter.admit(event, cause_of(fields), SteadyClock().now_ns());
    if (!admitted) return;
    suppressed = *admitted;
  }
  std::string line = render(event, fields);
  if (suppressed > 0) line += " suppressed=" + std::to_string(suppressed);
  if (s.sink) {
    s.sink(level, line);
    return;
  }
  if (!s.console) {
    s.console = std::make_shared<spdlog::logger>(
        "kvlane", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    s.console->set_level(spdlog::level::debug);
    s.console->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%L%$ %v");
  }
  s.console->log(to_spdlog(level), "{}", line);
}

bool set_log_levels(std::string_view text) {
  std::map<std::string, LogLevel, std::less<>> levels;
  LogLevel lowest = LogLevel::off;
  bool has_default = false;
  while (!text.empty()) {
    const std::string_view item = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), item.size() + 1));
    const std::size_t equals = item.find('=');
    const std::string_view name = equals == std::string_view::npos ? "" : item.substr(0, equals);
    LogLevel level{};
    if (!parse_level(equals == std::string_view::npos ? item : item.substr(equals + 1), level)) {
      return false;
    }
    has_default |= name.empty();
    levels[std::string(name)] = level;
    lowest = std::min(lowest, level);
  }
  LogState& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.levels = std::move(levels);
  lowest_level = has_default ? lowest : std::min(lowest, LogLevel::warning);
  return true;
}

void set_log_sink(LogSink sink) {
  LogState& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.sink = std::move(sink);
  s.limiter.clear();
}

}  // namespace kvl
