// Listing ports, and choosing the entry of the GID table.
#include "transport/verbs/verbs_device.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "transport/base/word_list.h"

namespace kvl::verbs {
namespace {

constexpr std::size_t kGidsMax = 1024;

// IPv4-mapped, global IPv6, link-local: by what routers and switches are likely to carry.
int preference(const ibv_gid& gid) {
  static constexpr std::array<std::uint8_t, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
  if (std::equal(kMapped.begin(), kMapped.end(), gid.raw)) return 0;
  return gid.raw[0] == 0xFE && (gid.raw[1] & 0xC0) == 0x80 ? 2 : 1;
}

bool usable(const ibv_gid_entry& entry, bool ethernet) {
  return entry.gid_type == (ethernet ? IBV_GID_TYPE_ROCE_V2 : IBV_GID_TYPE_IB);
}

// Whom such a port can reach.
std::string domain_of(const PortAddress& address) {
  if (address.ethernet) {
    static constexpr std::array<const char*, 3> kKinds{"ipv4", "ipv6", "link-local"};
    return std::string("roce/") + kKinds.at(static_cast<std::size_t>(preference(address.gid)));
  }
  std::ostringstream out;
  out << "ib/" << std::hex;
  for (int i = 0; i < 8; ++i)
    out << static_cast<unsigned>(address.gid.raw[i]) << (i < 7 ? ":" : "");
  return out.str();
}

// "200 Gb/sec (4X HDR)"
std::uint64_t rate_of(const std::string& folder, std::uint8_t port) {
  std::ifstream file(folder + "/ports/" + std::to_string(port) + "/rate");
  double gigabits = 0;
  return file >> gigabits && gigabits > 0 ? static_cast<std::uint64_t>(gigabits * 1e9 / 8) : 0;
}

int numa_node_of(const std::string& folder) {
  std::ifstream file(folder + "/device/numa_node");
  int node = -1;
  return file >> node ? node : -1;
}

bool listed(const std::string& list, const std::string& name) {
  return list.empty() || has_word(list, name);
}

struct Search {
  const VerbsApi& api;
  const VerbsConfig& config;
  const Places& places;
  std::vector<FoundPort> found;
  std::string why;

  void refuse(const std::string& name, const std::string& reason) {
    why += (why.empty() ? "" : "; ") + name + ": " + reason;
  }

  void take_port(const std::string& name, ibv_context* context, std::uint8_t port,
                 std::uint8_t ports) {
    const std::string full = ports == 1 ? name : name + "-" + std::to_string(port);
    const Result<PortAddress> address = address_of(api, context, port, config);
    if (!address.ok()) return refuse(full, address.status().context());
    FoundPort one;
    one.ibv_name = name;
    one.port = port;
    one.device.name = full;
    one.device.domain = domain_of(*address);
    one.device.caps = Cap::write | Cap::read | Cap::notify | Cap::host_memory | Cap::inter_node;
    if (api.reg_dmabuf_mr != nullptr) one.device.caps = one.device.caps | Cap::cuda_memory;
    one.device.limits.batches_inflight_max =
        static_cast<std::uint32_t>(config.batches_inflight_max);
    // peer_down comes after the queue pair has been destroyed: its device takes nothing for it.
    one.device.fence = Fence::immediate;
    one.device.bytes_per_second = rate_of(places.sysfs + "/" + name, port);
    one.device.numa_node = numa_node_of(places.sysfs + "/" + name);
    found.push_back(std::move(one));
  }

  void take(ibv_device* device) {
    const std::string name = api.get_device_name(device);
    if (!listed(config.devices, name)) return refuse(name, "verbs.devices leaves it out");
    if (device->transport_type == IBV_TRANSPORT_IWARP) {
      return refuse(name, "iWARP devices connect through rdma_cm only, which is not used: tcp is");
    }
    if (device->transport_type != IBV_TRANSPORT_IB) {
      return refuse(name, "it has no reliable connections (an EFA is libfabric's)");
    }
    const Owned<ibv_context> context(api.open_device(device), {api.close_device});
    ibv_device_attr attributes{};
    if (!context || api.query_device(context.get(), &attributes) != 0) {
      return refuse(name, std::string("it cannot be opened (") + std::strerror(errno) +
                              "): see the rights of " + places.nodes);
    }
    if (attributes.max_srq == 0) return refuse(name, "it has no shared receive queues");
    for (std::uint8_t port = 1; port <= attributes.phys_port_cnt; ++port) {
      take_port(name, context.get(), port, attributes.phys_port_cnt);
    }
  }
};

}  // namespace

std::string missing_on_host(const Places& places) {
  std::error_code error;
  if (std::filesystem::directory_iterator(places.sysfs, error) ==
      std::filesystem::directory_iterator()) {
    return "this host has no RDMA device (" + places.sysfs +
           " is empty): load the driver of one, or make a software one with rdma link add rxe0 "
           "type rxe netdev NAME";
  }
  for (const auto& entry : std::filesystem::directory_iterator(places.nodes, error)) {
    if (entry.path().filename().string().starts_with("uverbs")) return "";
  }
  return "there are RDMA devices and no " + places.nodes +
         "/uverbs*: load ib_uverbs, or start the container with --device=/dev/infiniband and "
         "--ulimit memlock=-1";
}

Result<PortAddress> address_of(const VerbsApi& api, ibv_context* context, std::uint8_t port,
                               const VerbsConfig& config) {
  ibv_port_attr attributes{};
  if (api.query_port(context, port, &attributes) != 0) {
    return Status{Code::unavailable, "its port cannot be asked", errno};
  }
  if (attributes.state != IBV_PORT_ACTIVE) {
    return Status{Code::unavailable, "its port is not active: see rdma link"};
  }
  PortAddress address;
  address.ethernet = attributes.link_layer == IBV_LINK_LAYER_ETHERNET;
  address.lid = attributes.lid;
  address.mtu = attributes.active_mtu;
  std::vector<ibv_gid_entry> entries(kGidsMax);
  const ssize_t count =
      api.query_gid_table(context, entries.data(), entries.size(), 0, sizeof(ibv_gid_entry));
  entries.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  for (const ibv_gid_entry& entry : entries) {
    if (entry.port_num != port) continue;
    const bool forced = config.gid_index == static_cast<std::int64_t>(entry.gid_index);
    if (!forced && (config.gid_index >= 0 || !usable(entry, address.ethernet))) continue;
    if (address.gid_index >= 0 && preference(entry.gid) >= preference(address.gid)) continue;
    address.gid = entry.gid;
    address.gid_index = static_cast<int>(entry.gid_index);
  }
  if (address.gid_index < 0 && config.gid_index >= 0) {
    return Status{Code::unavailable, "its GID table has no entry verbs.gid_index"};
  }
  if (address.gid_index < 0 && address.ethernet) {
    return Status{Code::unavailable,
                  "it has no GID of RoCE v2: give its network interface an address"};
  }
  return address;
}

Result<Owned<ibv_context>> open_context(const VerbsApi& api, const std::string& ibv_name) {
  int count = 0;
  ibv_device** const list = api.get_device_list(&count);
  if (list == nullptr) return Status{Code::unavailable, "list RDMA devices", errno};
  ibv_context* context = nullptr;
  int error = ENODEV;
  for (int i = 0; i < count; ++i) {
    if (api.get_device_name(list[i]) != ibv_name) continue;
    context = api.open_device(list[i]);
    error = errno;
  }
  api.free_device_list(list);
  if (context == nullptr) return Status{Code::unavailable, "open RDMA device", error};
  return Owned<ibv_context>(context, {api.close_device});
}

std::vector<FoundPort> find_ports(const VerbsApi& api, const VerbsConfig& config,
                                  const Places& places, std::string* why) {
  Search search{api, config, places, {}, {}};
  int count = 0;
  ibv_device** const list = api.get_device_list(&count);
  if (list == nullptr || count == 0) {
    *why = "libibverbs knows no driver for this host's RDMA devices: install ibverbs-providers";
  }
  for (int i = 0; list != nullptr && i < count; ++i) search.take(list[i]);
  if (list != nullptr) api.free_device_list(list);
  if (!search.why.empty()) *why = search.why;
  return std::move(search.found);
}

}  // namespace kvl::verbs
