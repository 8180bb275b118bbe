// The settings of the libfabric transport.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvl/config.h"

namespace kvl::libfabric {

struct FabricConfig {
  std::string library;            // "": the usual places
  std::string providers = "efa";  // comma list; software providers must be asked for
  bool hmem = false;
  bool emulated = false;
  std::int64_t connect_timeout_ms = 5'000;
  std::int64_t close_timeout_ms = 1'000;
  std::int64_t give_up_ms = 5'000;
  std::int64_t probe_ms = 300;
  std::int64_t op_bytes = 4 << 20;
  std::int64_t inflight_bytes = 8 << 20;
  std::int64_t tx_depth = 1024;
  std::int64_t rx_depth = 256;
  std::int64_t counted_ops = 16;
  std::int64_t immediates = 4096;
  std::int64_t mr_bytes = 0;  // 0: whatever the device takes
  std::int64_t batches_inflight_max = 1024;
};

std::vector<Setting> settings_rows();

}  // namespace kvl::libfabric
