// The verbs transport over a given table of entry points: what a test with a device of its own
// opens.
#pragma once

#include <memory>

#include "kvl/transport.h"
#include "transport/verbs/verbs_api.h"
#include "transport/verbs/verbs_config.h"
#include "transport/verbs/verbs_device.h"

namespace kvl::verbs {

std::unique_ptr<Transport> make_transport(const VerbsConfig& config, const VerbsApi& api,
                                          const Places& places);

}  // namespace kvl::verbs
