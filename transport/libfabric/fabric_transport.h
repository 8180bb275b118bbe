// The libfabric transport over a given table of entry points: what a test with a provider of its
// own opens.
#pragma once

#include <memory>

#include "kvl/transport.h"
#include "transport/libfabric/fabric_api.h"
#include "transport/libfabric/fabric_config.h"

namespace kvl::libfabric {

std::unique_ptr<Transport> make_transport(const FabricConfig& config, const FabricApi& api);

}  // namespace kvl::libfabric
