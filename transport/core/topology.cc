// Topology by hwloc: one walk over the objects of the I/O tree.
#include "transport/core/topology.h"

#include <hwloc.h>

#include <algorithm>
#include <cstdio>
#include <memory>

namespace kvl {
namespace {

struct TopologyFree {
  void operator()(hwloc_topology* topology) const { hwloc_topology_destroy(topology); }
};
using Handle = std::unique_ptr<hwloc_topology, TopologyFree>;

Handle prepare() {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return nullptr;
  hwloc_topology_set_io_types_filter(raw, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
  hwloc_topology_set_type_filter(raw, HWLOC_OBJ_BRIDGE, HWLOC_TYPE_FILTER_KEEP_ALL);
  return Handle(raw);
}

bool kind_of(hwloc_obj_t os, TopologyDevice::Kind& kind) {
  switch (os->attr->osdev.type) {
    case HWLOC_OBJ_OSDEV_NETWORK:
      kind = TopologyDevice::Kind::network;
      return true;
    case HWLOC_OBJ_OSDEV_OPENFABRICS:
      kind = TopologyDevice::Kind::fabric;
      return true;
    case HWLOC_OBJ_OSDEV_COPROC:
      kind = TopologyDevice::Kind::gpu;
      return true;
    default:
      return false;
  }
}

}  // namespace

class TopologyReader {
 public:
  static Topology read(hwloc_topology_t topology) {
    Topology out;
    out.numa_nodes_ = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_NUMANODE);
    for (int i = 0; i < out.numa_nodes_; ++i) {
      hwloc_obj_t node =
          hwloc_get_obj_by_type(topology, HWLOC_OBJ_NUMANODE, static_cast<unsigned>(i));
      std::vector<int> cpus;
      for (int cpu = hwloc_bitmap_first(node->cpuset); cpu >= 0;
           cpu = hwloc_bitmap_next(node->cpuset, cpu)) {
        cpus.push_back(cpu);
      }
      out.cpus_.push_back(std::move(cpus));
    }
    for (hwloc_obj_t os = hwloc_get_next_osdev(topology, nullptr); os != nullptr;
         os = hwloc_get_next_osdev(topology, os)) {
      TopologyDevice device;
      if (os->name == nullptr || !kind_of(os, device.kind)) continue;
      device.name = os->name;
      place(os->parent, out.numa_nodes_, device);
      out.devices_.push_back(std::move(device));
    }
    add_unnamed_gpus(topology, out);
    return out;
  }

 private:
  // hwloc gives "cuda0" only where its plugin for CUDA is installed; the PCI device is always
  // there.
  static void add_unnamed_gpus(hwloc_topology_t topology, Topology& out) {
    for (hwloc_obj_t pci = hwloc_get_next_pcidev(topology, nullptr); pci != nullptr;
         pci = hwloc_get_next_pcidev(topology, pci)) {
      if (pci->attr->pcidev.class_id >> 8 != kDisplayClass) continue;
      TopologyDevice device;
      device.kind = TopologyDevice::Kind::gpu;
      place(pci, out.numa_nodes_, device);
      device.name = device.pci;
      const bool named = std::ranges::any_of(out.devices_, [&](const TopologyDevice& known) {
        return known.kind == TopologyDevice::Kind::gpu && known.pci == device.pci;
      });
      if (!named) out.devices_.push_back(std::move(device));
    }
  }
  static constexpr unsigned kDisplayClass = 0x03;  // PCI base class of display controllers

  static void place(hwloc_obj_t at, int numa_nodes, TopologyDevice& device) {
    for (; at != nullptr && hwloc_obj_type_is_io(at->type); at = at->parent) {
      if (at->type == HWLOC_OBJ_PCI_DEVICE && device.pci.empty()) {
        const auto& pci = at->attr->pcidev;
        char text[32];
        std::snprintf(text, sizeof(text), "%04x:%02x:%02x.%01x", static_cast<unsigned>(pci.domain),
                      pci.bus, pci.dev, pci.func);
        device.pci = text;
      }
      device.path.insert(device.path.begin(), static_cast<unsigned>(at->gp_index));
    }
    if (at != nullptr && at->nodeset != nullptr && hwloc_bitmap_weight(at->nodeset) == 1 &&
        numa_nodes > 1) {
      device.numa_node = hwloc_bitmap_first(at->nodeset);
    }
  }
};

Result<Topology> Topology::discover() {
  const Handle handle = prepare();
  if (!handle || hwloc_topology_load(handle.get()) != 0) {
    return Status{Code::internal, "hwloc cannot read this machine"};
  }
  return TopologyReader::read(handle.get());
}

Result<Topology> Topology::from_xml(const std::string& path) {
  const Handle handle = prepare();
  if (!handle || hwloc_topology_set_xml(handle.get(), path.c_str()) != 0) {
    return Status{Code::not_found, "topology file cannot be read"};
  }
  if (hwloc_topology_load(handle.get()) != 0) {
    return Status{Code::invalid_argument, "not a topology of hwloc 2"};
  }
  return TopologyReader::read(handle.get());
}

const TopologyDevice* Topology::find(const std::string& name) const {
  const auto found = std::find_if(devices_.begin(), devices_.end(),
                                  [&](const TopologyDevice& d) { return d.name == name; });
  return found == devices_.end() ? nullptr : &*found;
}

std::vector<int> Topology::cpus(int numa_node) const {
  if (numa_node < 0 || static_cast<std::size_t>(numa_node) >= cpus_.size()) return {};
  return cpus_[static_cast<std::size_t>(numa_node)];
}

Distance distance(const TopologyDevice& a, const TopologyDevice& b) {
  std::size_t common = 0;
  while (common < a.path.size() && common < b.path.size() && a.path[common] == b.path[common]) {
    ++common;
  }
  // path[0] is the host bridge; a second shared element is a switch (or the same device).
  if (common >= 2) return Distance::same_switch;
  if (common == 1) return Distance::same_root;
  const bool same_node = a.numa_node == b.numa_node;
  return same_node ? Distance::same_numa : Distance::cross_numa;
}

std::vector<std::string> nearest(const Topology& topology, const TopologyDevice& to,
                                 TopologyDevice::Kind kind) {
  std::vector<std::string> names;
  auto best = Distance::cross_numa;
  for (const TopologyDevice& device : topology.devices()) {
    if (device.kind != kind) continue;
    const Distance far = distance(to, device);
    if (!names.empty() && far > best) continue;
    if (far < best) names.clear();
    best = far;
    names.push_back(device.name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace kvl
