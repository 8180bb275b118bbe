// Hosts that we lack, as hwloc would write them: GPUs and network devices below PCI switches.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace kvl::test {

// One PCI switch below a host bridge of its own.
struct PciSwitch {
  int numa = 0;
  std::vector<std::string> gpus, nics;  // "cuda0"; "rdmap16s27", "mlx5_0"
};

// XML for Topology::from_xml.
inline std::string machine_xml(int numa_nodes, const std::vector<PciSwitch>& switches) {
  int id = 0;
  const auto set = [](int node) {
    char text[32];
    std::snprintf(text, sizeof(text), "0x%08x", 1U << node);
    return std::string(text);
  };
  const auto sets = [&](const std::string& cpus, const std::string& nodes) {
    return " cpuset=\"" + cpus + "\" complete_cpuset=\"" + cpus + "\" nodeset=\"" + nodes +
           "\" complete_nodeset=\"" + nodes + "\"";
  };
  const auto open = [&](const char* type, const std::string& more) {
    return "<object type=\"" + std::string(type) + "\" gp_index=\"" + std::to_string(++id) + "\"" +
           more + ">";
  };
  char whole[32];
  std::snprintf(whole, sizeof(whole), "0x%08x", (1U << numa_nodes) - 1);
  std::string xml =
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE topology SYSTEM \"hwloc2.dtd\">\n"
      "<topology version=\"2.0\">" +
      open("Machine", " os_index=\"0\" allowed_cpuset=\"" + std::string(whole) +
                          "\" allowed_nodeset=\"" + whole + "\"" + sets(whole, whole));
  unsigned bus = 0x10;
  for (int node = 0; node < numa_nodes; ++node) {
    const std::string here = sets(set(node), set(node));
    const std::string index = " os_index=\"" + std::to_string(node) + "\"";
    xml += open("Package", index + here);
    xml += open("NUMANode", index + here + " local_memory=\"1073741824\"") + "</object>";
    xml += open("Core", index + here) + open("PU", index + here) + "</object></object>";
    for (const PciSwitch& one : switches) {
      if (one.numa != node) continue;
      const unsigned devices = static_cast<unsigned>(one.gpus.size() + one.nics.size());
      char text[160];
      std::snprintf(text, sizeof(text),
                    " bridge_type=\"0-1\" depth=\"0\" bridge_pci=\"0000:[%02x-%02x]\"", bus,
                    bus + devices + 1);
      xml += open("Bridge", text);
      std::snprintf(text, sizeof(text),
                    " bridge_type=\"1-1\" depth=\"1\" bridge_pci=\"0000:[%02x-%02x]\" "
                    "pci_busid=\"0000:%02x:01.0\" pci_type=\"0604 [1000:c030] [0000:0000] 00\"",
                    bus + 1, bus + devices + 1, bus);
      xml += open("Bridge", text);
      unsigned at = bus + 1;
      const auto device = [&](const std::string& name, const char* pci_class, int kind) {
        std::snprintf(text, sizeof(text),
                      " pci_busid=\"0000:%02x:00.0\" pci_type=\"%s [1d0f:efa2] [0000:0000] 00\"",
                      at++, pci_class);
        xml += open("PCIDev", text);
        // A GPU without a name is one that hwloc has no plugin for.
        if (!name.empty()) {
          xml +=
              open("OSDev", " name=\"" + name + "\" osdev_type=\"" + std::to_string(kind) + "\"") +
              "</object>";
        }
        xml += "</object>";
      };
      for (const std::string& gpu : one.gpus) device(gpu, "0302", 5);
      for (const std::string& nic : one.nics) device(nic, "0200", 3);
      xml += "</object></object>";
      bus += 0x10;
    }
    xml += "</object>";
  }
  return xml + "</object></topology>\n";
}

}  // namespace kvl::test
