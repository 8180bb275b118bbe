// Which ports of RDMA devices can be used, and how each is addressed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvl/transport.h"
#include "transport/verbs/verbs_api.h"
#include "transport/verbs/verbs_config.h"

namespace kvl::verbs {

// Where the kernel shows its devices.
struct Places {
  std::string sysfs = "/sys/class/infiniband";
  std::string nodes = "/dev/infiniband";
};

// How packets of a port are addressed. May change while it is open.
struct PortAddress {
  ibv_gid gid{};
  int gid_index = -1;  // -1: none; an InfiniBand subnet needs none
  std::uint16_t lid = 0;
  ibv_mtu mtu = IBV_MTU_1024;
  bool ethernet = false;
};

struct FoundPort {
  Device device;
  std::string ibv_name;
  std::uint8_t port = 1;
};

// "" or why the library need not even be opened, with what to do.
std::string missing_on_host(const Places& places);

// Every usable port. Empty: `why` says what is wrong with each.
std::vector<FoundPort> find_ports(const VerbsApi& api, const VerbsConfig& config,
                                  const Places& places, std::string* why);

// unavailable: the port is not active, or has no address of a kind that is used; the detail says
// what to do.
Result<PortAddress> address_of(const VerbsApi& api, ibv_context* context, std::uint8_t port,
                               const VerbsConfig& config);

// Opens by name. unavailable: it is gone, or may not be opened.
Result<Owned<ibv_context>> open_context(const VerbsApi& api, const std::string& ibv_name);

}  // namespace kvl::verbs
