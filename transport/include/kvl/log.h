// Log: named events with fields, one sink. Never called per page or per op.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

namespace kvl {

enum class LogLevel : std::uint8_t { debug, info, warning, error, off };

// key=value. The value is rendered at the call; texts with blanks are quoted by the sink.
struct LogField {
  std::string_view key;
  std::string value;

  LogField(std::string_view k, std::string_view v) : key(k), value(v) {}
  LogField(std::string_view k, const char* v) : key(k), value(v) {}
  LogField(std::string_view k, const std::string& v) : key(k), value(v) {}
  template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
  LogField(std::string_view k, T v) : key(k), value(std::to_string(v)) {}
};

// `event` is a stable dotted name whose first part is the subsystem: "rail.peer_down".
// A failure says its `code`, its `cause` where one code has several, and with `hint` what to do.
// Thread-safe. Lines below the subsystem's level cost one comparison. Of each event and cause (or
// code) 10 lines are written at once, then one a second; the next line that is written says with
// suppressed=N how many were not. Debug lines are all written.
void log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// "info" or "info,rail=debug,tcp=error". Default: warning. False on an unknown level word.
bool set_log_levels(std::string_view text);

// Replaces the sink (default: one line to standard error). For tests and embedding engines.
// The sink may be called from any thread; an empty function restores the default. The limit of
// lines begins anew.
using LogSink = std::function<void(LogLevel, std::string_view line)>;
void set_log_sink(LogSink sink);

}  // namespace kvl
