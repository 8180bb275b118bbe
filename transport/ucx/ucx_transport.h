// The UCX transport over a given table of entry points: what a test with functions of its own
// opens.
#pragma once

#include <memory>

#include "kvl/transport.h"
#include "transport/ucx/ucx_api.h"
#include "transport/ucx/ucx_config.h"

namespace kvl::ucx {

std::unique_ptr<Transport> make_transport(const UcxConfig& config, const UcxApi& api);

}  // namespace kvl::ucx
