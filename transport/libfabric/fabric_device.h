// Which devices libfabric has for us, and how each is to be asked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kvl/transport.h"
#include "transport/libfabric/fabric_api.h"
#include "transport/libfabric/fabric_config.h"

namespace kvl::libfabric {

struct InfoFree {
  void (*freeinfo)(fi_info*) = nullptr;
  void operator()(fi_info* info) const { freeinfo(info); }
};
using InfoPtr = std::unique_ptr<fi_info, InfoFree>;

struct FoundDevice {
  Device device;
  InfoPtr info;
  bool efa = false;
  bool direct = false;  // each operation is the device's, not of the provider's own protocol
  // A write is complete when its bytes are visible at the target; else when they have left for
  // good.
  bool delivery_complete = false;
  // A write may carry an immediate, and that takes no receive at its target.
  bool immediates = false;
};

// Every device of `providers`, in their order. Empty: `why` says what each of them answered.
std::vector<FoundDevice> find_devices(const FabricApi& api, const FabricConfig& config,
                                      const std::vector<std::string>& providers, std::string* why);

// Whether this host has an EFA device at all: no library need be opened to know that it has not.
bool host_has_efa(const std::string& sysfs = "/sys/class/infiniband");

}  // namespace kvl::libfabric
