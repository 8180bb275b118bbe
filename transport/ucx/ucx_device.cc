// Trying each device: a worker that connects to itself shows what UCX would choose.
#include "transport/ucx/ucx_device.h"

#include <algorithm>

#include "transport/ucx/ucx_worker.h"

namespace kvl::ucx {
namespace {

void ignore_failure(void*, ucp_ep_h, ucs_status_t) {}

// An endpoint of a worker to itself. False: there can be none.
bool loop_back(const Worker& worker, Lanes& lanes) {
  ucp_ep_h ep = nullptr;
  if (worker.connect(worker.address(), ignore_failure, nullptr, &ep) != UCS_OK) return false;
  lanes = lanes_of(worker.api(), ep);
  Closing closing = worker.close(ep);
  constexpr int kProgressMax = 1000;
  for (int i = 0; i < kProgressMax && !worker.closed(closing); ++i) {
    worker.api().worker_progress(worker.worker());
  }
  return true;
}

// "" or what is missing.
std::string try_out(const UcxApi& api, const UcxConfig& config, FoundDevice& found) {
  const auto worker =
      Worker::open(api, found.transports, config.net_devices, config.log_level, Use::remote_memory);
  if (!worker.ok()) return "UCX has no such transport on this host: see ucx_info -d";
  if (!loop_back(**worker, found.lanes)) {
    // Shared memory, for one: whoever uses it never hears that a peer has died.
    return "UCX cannot tell when a peer is lost there (no peer failure handler)";
  }
  if (found.transports == "tcp" && config.net_devices.empty()) {
    // UCX 1.20 finds no way from lo to lo.
    const auto local = Worker::open(api, found.transports, "lo", config.log_level, Use::messages);
    Lanes lanes;
    found.loopback = local.ok() && loop_back(**local, lanes);
  }
  // A CPU checks every run that it copies. A worker with remote memory takes puts from whoever has
  // its address and a key, closed endpoint or not.
  found.device.fence = found.lanes.emulated ? Fence::immediate : Fence::none;
  const std::string chosen = found.lanes.pages.substr(0, found.lanes.pages.find('/'));
  if (chosen != found.device.name) found.device.name += "-" + chosen;
  if (meets(found.wanted, found.lanes)) return "";
  return "UCX would carry pages by " +
         (found.lanes.pages.empty() ? std::string("nothing that it names") : found.lanes.pages);
}

Device describe(const UcxConfig& config, const std::string& name) {
  Device device;
  device.name = name;
  device.domain = "ucx/" + name;
  device.caps = Cap::write | Cap::read | Cap::notify | Cap::host_memory | Cap::inter_node;
  device.limits.batches_inflight_max = static_cast<std::uint32_t>(config.batches_inflight_max);
  return device;
}

}  // namespace

std::vector<FoundDevice> find_devices(const UcxApi& api, const UcxConfig& config,
                                      const std::vector<std::string>& names, std::string* why) {
  std::vector<FoundDevice> devices;
  why->clear();
  for (const std::string& name : names) {
    FoundDevice found;
    found.device = describe(config, name);
    found.wanted = name.substr(0, name.find('+'));
    found.transports = name;
    std::replace(found.transports.begin(), found.transports.end(), '+', ',');
    const std::string missing = try_out(api, config, found);
    if (missing.empty()) {
      devices.push_back(std::move(found));
    } else {
      *why += (why->empty() ? "" : "; ") + name + ": " + missing;
    }
  }
  return devices;
}

std::string net_devices_of(const FoundDevice& found, const UcxConfig& config,
                           const LinkContext& context) {
  // Nobody else has business at our port.
  if (context.same_host && found.loopback) return "lo";
  return config.net_devices;
}

}  // namespace kvl::ucx
