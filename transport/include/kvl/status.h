// Status and Result: how every function of kvlane says what went wrong.
#pragma once

#include <cassert>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace kvl {

// What went wrong, and what the caller may do about it. Wire values: append only.
enum class Code : std::uint8_t {
  ok = 0,
  invalid_argument = 1,  // the call itself is wrong: never retry
  not_found = 2,         // no such peer, memory, page, worker: look it up again
  unsupported = 3,       // this device, transport or layout cannot do it: choose another
  exhausted = 4,         // a bounded resource is full: retry after poll(), nothing was changed
  unavailable = 5,       // this path is not usable now: retry elsewhere
  peer_lost = 6,         // the other process is gone or unreachable: retry with another peer
  timed_out = 7,         // the deadline passed; the work was stopped
  aborted = 8,           // somebody asked for it to stop
  permission = 9,        // refused by the other side or by the kernel
  corrupt = 10,          // bytes failed a check: never deliver them
  internal = 11,         // a defect of kvlane: report it
};

// "exhausted", "peer_lost", … Unknown values (from the wire) are "unknown".
std::string_view to_string(Code code);

// Two words, never allocates. `context` is a string literal: what was being done and, where it
// helps, what to do about it. `os_error` is an errno value or 0. Safe to copy between threads.
class [[nodiscard]] Status {
 public:
  constexpr Status() = default;
  constexpr Status(Code code, const char* context, int os_error = 0)
      : code_(code), os_error_(os_error), context_(context) {}

  constexpr bool ok() const { return code_ == Code::ok; }
  constexpr Code code() const { return code_; }
  constexpr int os_error() const { return os_error_; }
  constexpr const char* context() const { return context_; }
  // "peer_lost: read control connection (Connection reset by peer)"
  std::string to_string() const;

 private:
  Code code_ = Code::ok;
  int os_error_ = 0;
  const char* context_ = "";
};
static_assert(sizeof(Status) == 16);

// A value or the Status that prevented it. value() of a failed Result is a programmer error.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                      // NOLINT: implicit
  Result(Status status) : status_(status) { assert(!status.ok()); }  // NOLINT: implicit

  bool ok() const { return value_.has_value(); }
  explicit operator bool() const { return ok(); }
  Status status() const { return status_; }
  Code code() const { return status_.code(); }
  T& value() & {
    assert(ok());
    return *value_;
  }
  const T& value() const& {
    assert(ok());
    return *value_;
  }
  T&& value() && {
    assert(ok());
    return *std::move(value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  Status status_;
  std::optional<T> value_;
};

// Passes a failed Status (or the Status of a failed Result) on to the caller.
#define KVL_TRY(expression)                                                              \
  do {                                                                                   \
    if (::kvl::Status kvl_status_ = (expression); !kvl_status_.ok()) return kvl_status_; \
  } while (false)

}  // namespace kvl
