// What each Code means to the people who meet it: one table, behind docs/failures.md, log lines and
// `kvlane doctor --explain`.
#pragma once

#include <span>
#include <string_view>

#include "kvl/status.h"

namespace kvl {

struct Failure {
  Code code = Code::ok;
  std::string_view meaning;   // what has happened
  std::string_view caller;    // what the calling program may do
  std::string_view remedy;    // what the operator does
  std::string_view counters;  // where it is counted, comma-separated
};

// Every code but ok, in the order of their values.
std::span<const Failure> failures();
// The operator's remedy; for unknown codes (from the wire) a sentence that says so.
std::string_view remedy(Code code);

}  // namespace kvl
