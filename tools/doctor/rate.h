// How fast pages really move to a peer, for `kvlane doctor`.
#pragma once

#include <string>

#include "kvl/config.h"
#include "kvl/status.h"
#include "tools/doctor/checks.h"

namespace kvl::tools {

// Writes pages of 64 KiB to a `kvlane bench --serve` at `address` for `seconds`, with an engine of
// its own, and compares the rate with what the devices in use say they can. Blocks for that long.
// `gb_per_s` (10^9 bytes) stays as it is where nothing could be measured; the check says why.
Check check_rate(const Settings& settings, const std::string& address, double seconds,
                 double* gb_per_s);

}  // namespace kvl::tools
