// The settings of the tcp transport.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvl/config.h"

namespace kvl::tcp {

struct TcpConfig {
  std::int64_t lanes = 2;              // connections per peer
  std::string congestion = "auto";     // auto: loopback_congestion on this host, else the system's
  std::int64_t send_buffer_bytes = 0;  // 0: the kernel tunes it
  std::int64_t recv_buffer_bytes = 0;
  std::string bind;       // "": every address
  std::string interface;  // "": every interface
  std::int64_t frame_bytes = 4 << 20;
  std::int64_t frame_runs = 1024;
  std::int64_t zerocopy_min_bytes = 0;  // 0: never
  std::int64_t busy_poll_us = 0;
  std::int64_t keepalive_s = 15;
  std::int64_t user_timeout_ms = 10'000;
  std::int64_t connect_timeout_ms = 5'000;
  std::int64_t reconnect_timeout_ms = 1'000;
  std::int64_t poll_bytes = 4 << 20;
  std::int64_t batches_inflight_max = 1024;
};

std::vector<Setting> settings_rows();

}  // namespace kvl::tcp
