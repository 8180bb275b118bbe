// Reads the security settings as an engine would, without opening one.
#include "tools/security_report.h"

#include "kvl/engine.h"
#include "kvl/security.h"

namespace kvl::tools {

SecurityReport report_security(const Settings& settings) {
  SecurityReport report;
  const auto config = settings.read<SecurityConfig>(security_settings());
  const std::string listen = settings.read<EngineConfig>(engine_settings()).listen;
  const auto secrets = load_secrets(config, &report.problem);
  if (!secrets) {
    report.authentication = "none";
    report.encryption = "off";
    return report;
  }
  if (secrets->empty()) {
    report.authentication = is_loopback(listen)
                                ? "none: every process of this host may connect"
                                : "none: whoever reaches " + listen + " may connect";
    static_cast<void>(check_listener("listen", listen, false, config.insecure, &report.problem));
    if (config.encrypt) {
      report.problem = "encrypt=on needs a secret: set secret_file or KVLANE_SECRET";
    }
  } else {
    report.authentication = std::to_string(secrets->size()) +
                            (secrets->size() == 1 ? " secret from " : " secrets (rotation) from ") +
                            (config.secret_file.empty() ? "KVLANE_SECRET" : config.secret_file);
  }
  report.encryption = config.encrypt     ? "on"
                      : secrets->empty() ? "off"
                                         : "off here; a peer with encrypt=on switches it on";
  return report;
}

}  // namespace kvl::tools
