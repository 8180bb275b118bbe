// The list of components that have settings. Adding one is a line here.
#include "kvl/bootstrap_server.h"
#include "kvl/engine.h"
#include "kvl/handoff.h"
#include "kvl/router.h"
#include "kvl/trace.h"
#include "tools/program.h"
#include "worker/http_server.h"

namespace kvl::tools {

std::vector<Setting> all_settings() {
  std::vector<Setting> rows = engine_settings();
  for (const Setting& row : transport_settings()) rows.push_back(row);
  for (const Setting& row : handoff_settings()) rows.push_back(row);
  for (const Setting& row : worker::http_server_settings()) rows.push_back(row);
  for (const std::span<const Setting> component : {
           router_settings(),
           bootstrap_settings(),
           trace_settings(),
       }) {
    rows.insert(rows.end(), component.begin(), component.end());
  }
  return rows;
}

}  // namespace kvl::tools
