// Flat arrays of blocks to page ops: neighbours become one op, so that what is posted is as short
// as the pages allow.
#pragma once

#include <vector>

#include "kvl/kvl.h"
#include "kvl/page_op.h"
#include "kvl/status.h"

namespace kvl::capi {

// invalid_argument: no blocks, a block of no or more than 4 GiB - 1 bytes, an index beyond its
// handles, an array that is missing.
Status merge_blocks(const kvl_transfer& transfer, std::vector<PageOp>& ops);

}  // namespace kvl::capi
