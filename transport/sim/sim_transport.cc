// Devices of a simulated node.
#include "transport/sim/sim_transport.h"

#include <algorithm>

#include "transport/sim/sim_link.h"

namespace kvl::sim {

std::vector<Device> SimTransport::devices() {
  std::vector<Device> all;
  for (std::uint32_t i = 0; i < devices_; ++i) {
    if (!world_.usable(world_.port(node_, i))) continue;
    Device device;
    device.name = "sim" + std::to_string(i);
    device.domain = "sim";
    device.caps = Cap::write | Cap::read | Cap::notify | Cap::host_memory | Cap::inter_node;
    device.limits.batches_inflight_max = world_.options().batches_inflight_max;
    device.fence = world_.options().fence;
    device.bytes_per_second = world_.options().bytes_per_second;
    all.push_back(std::move(device));
  }
  return all;
}

Result<std::unique_ptr<Link>> SimTransport::open(const Device& device, const LinkContext&) {
  const std::vector<Device> all = devices();
  for (std::uint32_t i = 0; i < devices_; ++i) {
    if (device.name != "sim" + std::to_string(i)) continue;
    const auto same = [&](const Device& d) { return d.name == device.name; };
    if (std::none_of(all.begin(), all.end(), same)) break;
    return std::unique_ptr<Link>(std::make_unique<SimLink>(world_, world_.port(node_, i), device));
  }
  return Status{Code::unavailable, "no such simulated device, or it is dead"};
}

}  // namespace kvl::sim
