// Which of a host's network devices are near to the memory of an engine. Pure but for the topology.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/transport.h"
#include "transport/core/topology.h"

namespace kvl {

// How a device is to be used: 0 among the nearest, 1 only when none of those is up.
using Nearness = std::uint8_t;

// The topology's device that `near` names: its name ("cuda0", "eth0") or PCI address
// ("0000:10:1c.0", also without the domain or in capitals), or "numa:N" for a NUMA node.
// invalid_argument: there is none such; the sentence in `error` lists what there is.
Result<TopologyDevice> find_near(const Topology&, const std::string& near, std::string* error);

// Of each device of one transport, by the same index. Devices that the topology does not know (a
// loopback, a whole host) are near to everything; where all are far, all are near.
std::vector<Nearness> nearness(const Topology&, const TopologyDevice& to,
                               std::span<const Device> devices);

}  // namespace kvl
