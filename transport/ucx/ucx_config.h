// The settings of the UCX transport.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvl/config.h"

namespace kvl::ucx {

struct UcxConfig {
  std::string library;      // "": the system's
  std::string transports;   // comma list; "": none, UCX must be asked for
  std::string net_devices;  // "": all
  std::string log_level = "fatal";
  std::int64_t connect_timeout_ms = 5'000;
  std::int64_t close_timeout_ms = 1'000;
  std::int64_t probe_ms = 300;
  std::int64_t op_bytes = 1 << 20;
  std::int64_t inflight_bytes = 8 << 20;
  std::int64_t tx_depth = 1024;
  std::int64_t rx_depth = 8192;
  std::int64_t batches_inflight_max = 1024;
};

std::vector<Setting> settings_rows();

}  // namespace kvl::ucx
