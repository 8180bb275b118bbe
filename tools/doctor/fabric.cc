// One function per check, over the files of /sys and /dev.
#include "tools/doctor/fabric.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <set>

#include "transport/base/host_files.h"

namespace kvl::tools {
namespace {

namespace fs = std::filesystem;
using State = Check::State;

// Names in a folder, sorted; none where it cannot be read.
std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(folder, failed)) {
    names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

std::string joined(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) all += (all.empty() ? "" : ", ") + word;
  return all;
}

std::string driver_of(const fs::path& device) {
  std::error_code failed;
  const fs::path target = fs::read_symlink(device / "device" / "driver", failed);
  return failed ? "" : target.filename().string();
}

// NICs that could do RDMA and that no driver has taken.
Check drivers(const fs::path& sys, const std::vector<std::string>& devices) {
  std::vector<std::string> idle;
  for (const std::string& pci : names_in(sys / "bus/pci/devices")) {
    const fs::path at = sys / "bus/pci/devices" / pci;
    const bool efa =
        first_line(at / "vendor") == "0x1d0f" && first_line(at / "device").starts_with("0xefa");
    const bool infiniband = first_line(at / "class").starts_with("0x0207");
    if ((efa || infiniband) && !fs::exists(at / "driver")) idle.push_back(pci);
  }
  if (idle.empty()) return {State::ok, "rdma_devices", joined(devices), ""};
  return {State::problem, "rdma_devices", joined(idle) + " without a driver",
          "load it: modprobe efa, mlx5_ib or irdma; in a virtual machine the device must be passed "
          "through"};
}

// In a container the devices show in /sys, and cannot be opened.
Check device_files(const FabricPlaces& places, const std::vector<std::string>& devices) {
  std::vector<std::string> missing;
  for (const std::string& verbs : names_in(fs::path(places.sys) / "class/infiniband_verbs")) {
    if (!verbs.starts_with("uverbs")) continue;
    if (!fs::exists(fs::path(places.dev) / "infiniband" / verbs)) missing.push_back(verbs);
  }
  if (missing.empty()) {
    return {State::ok, "rdma_files", "one for each of " + std::to_string(devices.size()), ""};
  }
  return {State::problem, "rdma_files", joined(missing) + " not in /dev/infiniband",
          "start the container with --device=/dev/infiniband, or with the device plugin of the "
          "cluster"};
}

Check ports(const fs::path& sys, const std::vector<std::string>& devices) {
  std::vector<std::string> active, down;
  for (const std::string& device : devices) {
    const fs::path folder = sys / "class/infiniband" / device / "ports";
    for (const std::string& port : names_in(folder)) {
      const std::string state = first_line(folder / port / "state");
      const std::string rate = first_line(folder / port / "rate");
      const bool up = state.find("ACTIVE") != std::string::npos;
      (up ? active : down).push_back(device + ":" + port + " " + (up ? rate : state));
    }
  }
  if (down.empty()) return {State::ok, "rdma_ports", joined(active), ""};
  return {active.empty() ? State::problem : State::note, "rdma_ports", joined(down),
          "not used: see the cable and the switch; InfiniBand needs a subnet manager, RoCE an "
          "interface that is up"};
}

Check locked_memory(std::uint64_t locked_bytes) {
  if (locked_bytes == UINT64_MAX) return {State::ok, "rdma_locked_memory", "unlimited", ""};
  return {State::problem, "rdma_locked_memory", std::to_string(locked_bytes) + " bytes",
          "registered memory is locked: ulimit -l unlimited, LimitMEMLOCK=infinity in the unit, "
          "--ulimit memlock=-1 for a container"};
}

// Ports of RoCE: what their network interface has.
void roce(const fs::path& sys, const std::vector<std::string>& devices, std::vector<Check>& all) {
  constexpr int kPathMtu4096 = 4200;  // what a frame of 4096 bytes needs with its headers
  std::vector<std::string> small, without;
  bool any = false;
  for (const std::string& device : devices) {
    const fs::path at = sys / "class/infiniband" / device;
    for (const std::string& port : names_in(at / "ports")) {
      const fs::path folder = at / "ports" / port;
      if (first_line(folder / "link_layer") != "Ethernet") continue;
      any = true;
      for (const std::string& net : names_in(at / "device/net")) {
        const std::string mtu = first_line(at / "device/net" / net / "mtu");
        if (!mtu.empty() && std::atoi(mtu.c_str()) < kPathMtu4096) small.push_back(net + " " + mtu);
      }
      bool good = false;
      for (const std::string& gid : names_in(folder / "gids")) {
        const bool mapped =
            first_line(folder / "gids" / gid).starts_with("0000:0000:0000:0000:0000:ffff:");
        const bool v2 = first_line(folder / "gid_attrs/types" / gid) == "RoCE v2";
        good = good || (mapped && v2);
      }
      if (!good) without.push_back(device + ":" + port);
    }
  }
  if (!any) return;
  all.push_back(small.empty()
                    ? Check{State::ok, "roce_mtu", "4200 and more", ""}
                    : Check{State::note, "roce_mtu", joined(small),
                            "packets carry 1024 bytes only: ip link set DEV mtu 9000, on both "
                            "hosts and on the switch alike"});
  all.push_back(without.empty()
                    ? Check{State::ok, "roce_gids", "RoCE v2 with an IPv4 address", ""}
                    : Check{State::note, "roce_gids", joined(without) + " without such",
                            "give the interface an IPv4 address: routed RoCE needs a RoCE v2 GID "
                            "made from it, on both hosts"});
}

// An EFA maps 4 KiB pages by the million: large pools exhaust it, and registering takes long.
Check huge_pages(const FabricPlaces& places) {
  const std::int64_t total = std::max<std::int64_t>(meminfo("HugePages_Total", places.meminfo), 0);
  const std::string transparent =
      first_line(fs::path(places.sys) / "kernel/mm/transparent_hugepage/enabled");
  if (total > 0 || transparent.find("[never]") == std::string::npos) {
    return {State::ok, "huge_pages",
            std::to_string(total) + " reserved; transparent " + transparent, ""};
  }
  return {State::note, "huge_pages", "none",
          "an EFA has about 24 million page entries, 88 GiB of 4 KiB pages: enable transparent "
          "huge pages or reserve some for host pools"};
}

// Two of them in one process corrupt each other: NCCL's plugin often brings its own.
Check libfabrics(const FabricPlaces& places) {
  std::vector<std::string> found;
  std::set<fs::path> seen;
  for (const std::string& path : places.libfabrics) {
    std::error_code failed;
    const fs::path real = fs::canonical(path, failed);
    if (!failed && seen.insert(real).second) found.push_back(path);
  }
  if (found.size() < 2) {
    return {State::ok, "libfabrics", found.empty() ? "none" : found.front(), ""};
  }
  return {State::note, "libfabrics", joined(found) + "; the first is used",
          "two in one process do not work together: see that NCCL's plugin loads the same "
          "(ldd libnccl-net.so), or name it in libfabric.library"};
}

}  // namespace

std::vector<Check> check_fabrics(const FabricPlaces& places, std::uint64_t locked_bytes) {
  const fs::path sys = places.sys;
  const std::vector<std::string> devices = names_in(sys / "class/infiniband");
  std::vector<Check> all;
  Check driver = drivers(sys, devices);
  if (devices.empty() && driver.state == State::ok) return all;
  all.push_back(std::move(driver));
  if (devices.empty()) return all;
  all.push_back(device_files(places, devices));
  all.push_back(ports(sys, devices));
  all.push_back(locked_memory(locked_bytes));
  roce(sys, devices, all);
  const bool efa = std::ranges::any_of(devices, [&](const std::string& device) {
    return driver_of(sys / "class/infiniband" / device) == "efa";
  });
  if (efa) all.push_back(huge_pages(places));
  if (efa) all.push_back(libfabrics(places));
  return all;
}

}  // namespace kvl::tools
