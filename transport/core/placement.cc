// Matching the devices of transports with those of the topology.
#include "transport/core/placement.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace kvl {
namespace {

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

// "0000:10:1c.0" is also written "10:1c.0" and, by CUDA, "00000000:10:1C.0".
bool same_pci(const std::string& a, const std::string& b) {
  const std::string& longer = a.size() < b.size() ? b : a;
  const std::string& shorter = a.size() < b.size() ? a : b;
  if (!longer.ends_with(shorter)) return false;
  const std::string rest = longer.substr(0, longer.size() - shorter.size());
  return rest.find_first_not_of("0:") == std::string::npos;
}

// Providers put words of their own around a device's name: "efa-direct-rdmap16s27-rdm".
bool names(const std::string& device, const std::string& known) {
  for (std::size_t at = device.find(known); at != std::string::npos;
       at = device.find(known, at + 1)) {
    const std::size_t end = at + known.size();
    const auto apart = [&](std::size_t i) {
      return i >= device.size() || std::isalnum(static_cast<unsigned char>(device[i])) == 0;
    };
    if ((at == 0 || apart(at - 1)) && apart(end)) return true;
  }
  return false;
}

const TopologyDevice* find_device(const Topology& topology, const std::string& name) {
  const TopologyDevice* best = nullptr;
  for (const TopologyDevice& known : topology.devices()) {
    if (!names(name, known.name)) continue;
    if (best == nullptr || known.name.size() > best->name.size()) best = &known;
  }
  return best;
}

}  // namespace

Result<TopologyDevice> find_near(const Topology& topology, const std::string& near,
                                 std::string* error) {
  constexpr std::string_view kNuma = "numa:";
  if (near.starts_with(kNuma)) {
    int node = -1;
    const auto [end, bad] =
        std::from_chars(near.data() + kNuma.size(), near.data() + near.size(), node);
    if (bad == std::errc{} && end == near.data() + near.size() && node >= 0 &&
        node < topology.numa_nodes()) {
      TopologyDevice place;
      place.name = near;
      place.numa_node = topology.numa_nodes() > 1 ? node : -1;
      return place;
    }
  } else {
    const std::string wanted = lower(near);
    for (const TopologyDevice& device : topology.devices()) {
      if (device.name == near || (!device.pci.empty() && same_pci(device.pci, wanted))) {
        return device;
      }
    }
  }
  std::string known;
  for (const TopologyDevice& device : topology.devices()) {
    known += (known.empty() ? "" : ", ") + device.name;
    if (!device.pci.empty() && device.pci != device.name) known += " (" + device.pci + ")";
  }
  *error = "near=" + near + " is no device of this host; there are " +
           (known.empty() ? "none" : known) +
           ", and numa:0 to numa:" + std::to_string(std::max(topology.numa_nodes() - 1, 0));
  return Status{Code::invalid_argument, "near"};
}

std::vector<Nearness> nearness(const Topology& topology, const TopologyDevice& to,
                               std::span<const Device> devices) {
  std::vector<Distance> far(devices.size(), Distance::same_switch);
  auto best = Distance::cross_numa;
  bool known = false;
  for (std::size_t i = 0; i < devices.size(); ++i) {
    const TopologyDevice* const device = find_device(topology, devices[i].name);
    if (device == nullptr) continue;
    far[i] = distance(to, *device);
    best = std::min(best, far[i]);
    known = true;
  }
  std::vector<Nearness> all(devices.size(), 0);
  for (std::size_t i = 0; i < devices.size() && known; ++i) {
    if (find_device(topology, devices[i].name) != nullptr) all[i] = far[i] > best ? 1 : 0;
  }
  return all;
}

}  // namespace kvl
