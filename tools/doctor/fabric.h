// What `kvlane doctor` looks at on a host with RDMA devices: drivers, ports, limits, libraries.
#pragma once

#include <string>
#include <vector>

#include "tools/doctor/checks.h"

namespace kvl::tools {

// Where to look; another root lets tests describe a host.
struct FabricPlaces {
  std::string sys = "/sys", dev = "/dev";
  std::string meminfo = "/proc/meminfo";
  // libfabric.so.1, in the order in which kvlane looks for it.
  std::vector<std::string> libfabrics{"/opt/amazon/efa/lib/libfabric.so.1",
                                      "/opt/amazon/efa/lib64/libfabric.so.1",
                                      "/usr/lib/x86_64-linux-gnu/libfabric.so.1",
                                      "/usr/lib/aarch64-linux-gnu/libfabric.so.1",
                                      "/usr/lib64/libfabric.so.1",
                                      "/usr/local/lib/libfabric.so.1"};
};

// Nothing on a host that has no such device. `locked_bytes`: that a process may lock; UINT64_MAX:
// as many as it likes.
std::vector<Check> check_fabrics(const FabricPlaces& places, std::uint64_t locked_bytes);

}  // namespace kvl::tools
