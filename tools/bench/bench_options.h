// What a user can ask of `kvlane bench`, as read from the command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/support/output.h"
#include "kvl/config.h"
#include "kvl/transport.h"
#include "tools/bench/workload.h"

namespace kvl::bench {

struct BenchOptions {
  // Which mode; none of them: rows of page sizes between two processes.
  bool latency = false;
  std::string suite;  // "figures", "scaling"
  bool serve = false;
  std::string serve_address;      // "" with serve: any address, free port
  std::uint64_t serve_fleet = 0;  // that many targets in this process
  std::string peer;               // a serving side on another host
  std::vector<std::string> compare;

  // Rows.
  std::string transport = "auto";
  std::vector<Direction> directions{Direction::write};
  std::vector<std::uint64_t> page_bytes{4096};
  WorkloadSpec workload;  // page_bytes is set per row
  double seconds = 2;
  std::uint32_t depth = 1;
  bool foreign = false;
  bool notes = true;
  bool verify = false;
  bool flip_byte = false;  // break one byte, to see that verify sees it
  std::string baselines = "all";
  // Latency mode: every contender looks that long before each sleep. Less than waking up takes
  // measures the scheduler: once one side sleeps, the other gives up looking before the answer.
  std::int64_t spin_us = 1000;

  // Between hosts.
  std::string model = "llama-3.1-8b";
  std::uint64_t prompt_tokens = 32768;
  std::uint64_t serve_bytes_max = 0;  // 0: half of the free memory

  std::int64_t timeout_ms = 30'000;
  Format format = Format::text;

  // Settings of both engines: what the user gave as flags.
  std::vector<std::pair<std::string, std::string>> flags;
  std::string config_file;

  bool baseline(std::string_view name) const;  // is it wanted
};

// A row's transport as the engine's setting `require` wants it: "auto" is "", "tcp::eth0" is
// "tcp:eth0", "efa" is "libfabric:efa*". Fails with a sentence.
Result<std::string> required_transport(std::string_view text, std::string* error);

inline std::string_view to_string(Direction direction) {
  return direction == Direction::write ? "write" : "read";
}

}  // namespace kvl::bench
