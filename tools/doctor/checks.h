// What `kvlane doctor` looks at on this host beside transports: limits, kernel settings, security.
#pragma once

#include <string>
#include <vector>

#include "kvl/config.h"

namespace kvl::tools {

struct Check {
  enum class State { ok, note, problem };  // note: works, but not as well as it could
  State state = State::ok;
  std::string name;    // stable: "fd_limit"
  std::string found;   // "1024 files"
  std::string remedy;  // what to do; "" when ok
};
std::string_view to_string(Check::State state);

std::vector<Check> check_host(const Settings& settings);

}  // namespace kvl::tools
