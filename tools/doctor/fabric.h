// What `kvlane doctor` looks at on a host with RDMA devices: drivers, ports, limits, libraries.
#pragma once

#include <string>
#include <vector>

#include "tools/doctor/checks.h"
#include "transport/libfabric/fabric_places.h"

namespace kvl::tools {

// Where to look; another root lets tests describe a host.
struct FabricPlaces {
  std::string sys = "/sys", dev = "/dev";
  std::string meminfo = "/proc/meminfo";
  // libfabric.so.1, in the order in which kvlane looks for it.
  std::vector<std::string> libfabrics = libfabric::library_files();
};

// Nothing on a host that has no such device. `locked_bytes`: that a process may lock; UINT64_MAX:
// as many as it likes.
std::vector<Check> check_fabrics(const FabricPlaces& places, std::uint64_t locked_bytes);

}  // namespace kvl::tools
