// The settings of the verbs transport.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvl/config.h"

namespace kvl::verbs {

struct VerbsConfig {
  std::string library;  // "": the system's
  std::string devices;  // comma list; "": all
  std::int64_t gid_index = -1;
  std::int64_t pkey_index = 0;
  std::int64_t traffic_class = 0;
  std::int64_t service_level = 0;
  std::int64_t ack_timeout = 14;
  std::int64_t retries = 5;
  bool relaxed_ordering = true;
  std::int64_t connect_timeout_ms = 5'000;
  std::int64_t close_timeout_ms = 1'000;
  std::int64_t probe_ms = 300;
  std::int64_t op_bytes = 1 << 20;
  std::int64_t inflight_bytes = 16 << 20;
  std::int64_t inline_bytes = 128;
  std::int64_t sq_depth = 256;
  std::int64_t rq_depth = 512;
  std::int64_t cq_depth = 8192;
  std::int64_t batches_inflight_max = 1024;
};

std::vector<Setting> settings_rows();

}  // namespace kvl::verbs
