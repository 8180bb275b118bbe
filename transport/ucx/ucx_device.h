// Which devices UCX has for us, and what it makes of them.
#pragma once

#include <string>
#include <vector>

#include "kvl/transport.h"
#include "transport/ucx/ucx_api.h"
#include "transport/ucx/ucx_config.h"
#include "transport/ucx/ucx_lanes.h"

namespace kvl::ucx {

struct FoundDevice {
  Device device;
  std::string wanted;      // what must carry the pages: the first of its transports
  std::string transports;  // as UCX_TLS
  Lanes lanes;             // what UCX takes between two workers of this host
  bool loopback = false;   // it can do with "lo" alone
};

// One device for each of `names` ("tcp", "rc_verbs+tcp") that can move pages and tell when a peer
// is lost. Empty: `why` says what each lacks.
std::vector<FoundDevice> find_devices(const UcxApi& api, const UcxConfig& config,
                                      const std::vector<std::string>& names, std::string* why);

// UCX_NET_DEVICES for a Link of this device. "": all.
std::string net_devices_of(const FoundDevice& found, const UcxConfig& config,
                           const LinkContext& context);

}  // namespace kvl::ucx
