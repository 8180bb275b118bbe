// What the settings say about who may connect and what is encrypted, in words; for info and doctor.
#pragma once

#include <string>

#include "kvl/config.h"

namespace kvl::tools {

struct SecurityReport {
  std::string authentication;  // "a secret of secret_file /etc/kvlane/secret", "none: …"
  std::string encryption;      // "on", "off", …
  std::string problem;         // why an engine with these settings does not start; "" if it does
};
SecurityReport report_security(const Settings& settings);

}  // namespace kvl::tools
