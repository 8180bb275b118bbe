// A transport that moves nothing and completes at once: what is left is the cost of the engine.
#pragma once

#include <memory>

#include "kvl/transport.h"

namespace kvl::bench {

// Two engines that both have it reach each other, in one process or two. Batches end as ok with all
// their bytes at the next poll(); notes are not delivered.
std::unique_ptr<Transport> make_null_transport();

}  // namespace kvl::bench
