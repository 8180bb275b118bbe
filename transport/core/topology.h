// Who sits near whom: network devices, GPUs and NUMA nodes of a host, by hwloc. From this machine
// or from a recorded XML file (`lstopo --whole-io FILE.xml`), so that tests know machines we lack.
#pragma once

#include <string>
#include <vector>

#include "kvl/status.h"

namespace kvl {

struct TopologyDevice {
  enum class Kind : unsigned char { network, fabric, gpu };
  std::string
      name;  // "eth0", "rdmap16s27", "cuda0"; of a GPU that hwloc cannot name its PCI address
  Kind kind = Kind::network;
  std::string pci;             // "0000:10:1b.0"; "" where there is none (loopback)
  int numa_node = -1;          // -1: the same for all
  std::vector<unsigned> path;  // ids of the bridges from the root down, the device's PCI last
};

// How far two devices are apart: the fewer, the nearer.
enum class Distance : unsigned char {
  same_switch = 0,  // below one PCI bridge: peer-to-peer without the root complex
  same_root = 1,    // below one host bridge
  same_numa = 2,
  cross_numa = 3,
};

class Topology {
 public:
  static Result<Topology> discover();
  // not_found: unreadable. invalid_argument: not a topology of hwloc 2.
  static Result<Topology> from_xml(const std::string& path);

  const std::vector<TopologyDevice>& devices() const { return devices_; }
  const TopologyDevice* find(const std::string& name) const;
  int numa_nodes() const { return numa_nodes_; }
  // Processors of a NUMA node, for pinning; empty: unknown node.
  std::vector<int> cpus(int numa_node) const;

 private:
  friend class TopologyReader;
  std::vector<TopologyDevice> devices_;
  std::vector<std::vector<int>> cpus_;
  int numa_nodes_ = 0;
};

Distance distance(const TopologyDevice& a, const TopologyDevice& b);
// Names of the devices of `kind` that are nearest to `to`, all at the same least distance, by name.
std::vector<std::string> nearest(const Topology&, const TopologyDevice& to,
                                 TopologyDevice::Kind kind);

}  // namespace kvl
