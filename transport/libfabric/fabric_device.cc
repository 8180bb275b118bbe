// Asking fi_getinfo, most wanted first.
#include "transport/libfabric/fabric_device.h"

#include <cstring>
#include <filesystem>
#include <set>

namespace kvl::libfabric {
namespace {

constexpr std::uint64_t kCaps = FI_MSG | FI_RMA;

struct Attempt {
  std::uint64_t mode;
  const char* fabric;  // null: any
};

std::string text(const char* chars) { return chars == nullptr ? "" : chars; }

// Providers that do not keep what a Link promises, and so are not taken whoever asks.
struct Refused {
  std::string_view provider, why;
};
constexpr Refused kRefused[] = {
    {"shm",
     "it loses completions of small pieces and faults when an endpoint of its own process closes: "
     "the transport shm serves one host"},
};

std::string_view why_refused(std::string_view provider) {
  for (const Refused& refused : kRefused) {
    if (refused.provider == provider) return refused.why;
  }
  return "";
}

// The first that is answered is taken.
std::vector<Attempt> attempts(const std::string& provider) {
  if (provider != "efa") return {{FI_CONTEXT | FI_CONTEXT2, nullptr}};
  // efa-direct posts straight to the device; without unsolicited writes it wants FI_RX_CQ_DATA.
  return {{FI_CONTEXT2, "efa-direct"},
          {FI_CONTEXT2 | FI_RX_CQ_DATA, "efa-direct"},
          {FI_CONTEXT | FI_CONTEXT2, nullptr}};
}

InfoPtr ask(const FabricApi& api, const FabricConfig& config, const std::string& provider,
            const Attempt& attempt, bool delivery_complete, int& error) {
  InfoPtr hints(api.dupinfo(nullptr), {api.freeinfo});
  if (!hints) return hints;
  hints->caps = kCaps | (config.hmem ? FI_HMEM : 0);
  hints->mode = attempt.mode;
  hints->ep_attr->type = FI_EP_RDM;
  hints->domain_attr->threading = FI_THREAD_SAFE;  // memory is registered beside the owner
  hints->domain_attr->av_type = FI_AV_TABLE;
  hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY |
                                (config.hmem ? FI_MR_HMEM : 0);
  hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
  hints->tx_attr->op_flags = delivery_complete ? FI_DELIVERY_COMPLETE : 0;
  // Freed with the hints, so malloc'ed as libfabric does.
  hints->fabric_attr->prov_name = ::strdup(provider.c_str());
  if (attempt.fabric != nullptr) hints->fabric_attr->name = ::strdup(attempt.fabric);
  fi_info* found = nullptr;
  error = api.getinfo(negotiate(api), nullptr, nullptr, 0, hints.get(), &found);
  return InfoPtr(error == 0 ? found : nullptr, {api.freeinfo});
}

// Whom such a device can reach.
std::string domain_of(const std::string& provider, const fi_info& info) {
  const std::string whole = text(info.fabric_attr->prov_name);
  // The name of a tcp fabric is a subnet, and there are ways between subnets.
  if (provider == "tcp") return whole + "/ip";
  return whole + "/" + text(info.fabric_attr->name);
}

Device describe(const FabricConfig& config, const std::string& provider, const fi_info& info) {
  Device device;
  // Both fabrics of an EFA are of one provider; who asks for one of them wants to see it.
  const std::string fabric = text(info.fabric_attr->name);
  const bool direct = provider == "efa" && fabric.starts_with("efa-direct");
  device.name = (direct ? "efa-direct" : provider) + "-" + text(info.domain_attr->name);
  device.domain = domain_of(provider, info);
  device.caps = Cap::write | Cap::read | Cap::notify | Cap::host_memory | Cap::inter_node;
  if (config.hmem) device.caps = device.caps | Cap::cuda_memory;
  device.limits.batches_inflight_max = static_cast<std::uint32_t>(config.batches_inflight_max);
  // An EFA refuses who is not in the address vector. Of the others nothing is known.
  device.fence = provider == "efa" ? Fence::av_remove : Fence::none;
  if (info.nic != nullptr && info.nic->link_attr != nullptr) {
    device.bytes_per_second = info.nic->link_attr->speed / 8;
  }
  return device;
}

// `list`, one device for each domain: the first address of a network interface will do.
void take(const FabricConfig& config, const std::string& provider, const FabricApi& api,
          const fi_info* list, bool delivery_complete, bool direct,
          std::vector<FoundDevice>& devices) {
  std::set<std::string> seen;
  const std::size_t before = devices.size();
  std::vector<FoundDevice> loopback;
  for (const fi_info* info = list; info != nullptr; info = info->next) {
    const std::string name = text(info->domain_attr->name);
    if (!seen.insert(name).second) continue;
    FoundDevice found;
    found.device = describe(config, provider, *info);
    found.info = InfoPtr(api.dupinfo(info), {api.freeinfo});
    if (!found.info) continue;
    found.efa = provider == "efa";
    found.direct = direct;
    found.delivery_complete = delivery_complete;
    found.immediates = info->domain_attr->cq_data_size >= 4 && (info->mode & FI_RX_CQ_DATA) == 0;
    (provider == "tcp" && name == "lo" ? loopback : devices).push_back(std::move(found));
  }
  if (devices.size() == before) {
    for (FoundDevice& found : loopback) devices.push_back(std::move(found));
  }
}

}  // namespace

std::vector<FoundDevice> find_devices(const FabricApi& api, const FabricConfig& config,
                                      const std::vector<std::string>& providers, std::string* why) {
  std::vector<FoundDevice> devices;
  why->clear();
  for (const std::string& provider : providers) {
    if (const std::string_view reason = why_refused(provider); !reason.empty()) {
      *why += (why->empty() ? "" : "; ") + ("libfabric's provider " + provider) +
              " is not used: " + std::string(reason);
      continue;
    }
    InfoPtr list;
    int error = 0;
    bool delivery_complete = false, direct = false;
    for (const Attempt& attempt : attempts(provider)) {
      for (const bool delivery : {true, false}) {
        if (list) break;
        delivery_complete = delivery;
        direct = attempt.fabric != nullptr;
        list = ask(api, config, provider, attempt, delivery, error);
      }
    }
    if (list) {
      take(config, provider, api, list.get(), delivery_complete, direct, devices);
    } else {
      *why += (why->empty() ? "" : "; ") + ("libfabric's provider " + provider) +
              " has no device with FI_MSG and FI_RMA (" + text(api.strerror(-error)) +
              "): see fi_info -p " + provider;
    }
  }
  return devices;
}

bool host_has_efa(const std::string& sysfs) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(sysfs, error)) {
    const auto driver = std::filesystem::read_symlink(entry.path() / "device" / "driver", error);
    if (driver.filename() == "efa") return true;
  }
  return false;
}

}  // namespace kvl::libfabric
