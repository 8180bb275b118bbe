// The door of the libfabric transport: which providers may be used, and what they have.
#include "transport/libfabric/fabric_transport.h"

#include <algorithm>
#include <mutex>
#include <optional>

#include "transport/base/word_list.h"
#include "transport/libfabric/fabric_link.h"

namespace kvl {
namespace libfabric {
namespace {

class FabricTransport final : public Transport {
 public:
  FabricTransport(FabricConfig config, std::optional<FabricApi> api)
      : config_(std::move(config)), api_(api), given_(api.has_value()) {}

  std::string_view name() const override { return "libfabric"; }
  int rank() const override { return 20; }

  std::vector<Device> devices() override {
    look();
    std::vector<Device> all;
    for (const FoundDevice& found : found_) all.push_back(found.device);
    return all;
  }

  std::string why_unusable() override {
    look();
    return found_.empty() ? why_ : "";
  }

  Result<std::unique_ptr<Link>> open(const Device& device, const LinkContext& context) override {
    look();
    for (const FoundDevice& found : found_) {
      if (found.device.name == device.name) {
        return FabricLink::open(*api_, found, config_, context);
      }
    }
    return Status{Code::unavailable, "libfabric does not list this device any more"};
  }

 private:
  // Once: to ask libfabric is expensive, and what it has does not change while we run.
  void look() {
    if (looked_) return;
    looked_ = true;
    const std::vector<std::string> providers = words_of(config_.providers);
    // The library starts threads and hooks of its own: not where nothing could come of it.
    const bool only_efa = providers == std::vector<std::string>{"efa"};
    if (!given_ && only_efa && !host_has_efa()) {
      why_ =
          "this host has no EFA device (/sys/class/infiniband lists none with driver efa): attach "
          "one and load its driver";
      return;
    }
    if (!api_) {
      Result<FabricApi> api = load_fabric_api(config_.library, &why_);
      if (!api.ok()) return;
      api_ = *api;
    }
    found_ = find_devices(*api_, config_, providers, &why_);
    std::erase_if(found_, [this](FoundDevice& found) { return !tell_caps(found); });
    if (found_.empty() && why_.empty()) why_ = "libfabric.providers names no provider";
  }

  // What the device does itself, as only an opened endpoint knows. False: nothing, and nobody has
  // asked for such a device.
  bool tell_caps(FoundDevice& found) {
    if (!found.efa || found.direct) return true;  // efa-direct is only there with both
    const auto endpoint = Endpoint::open(*api_, found, config_);
    if (!endpoint.ok()) return true;  // open() will say so
    const bool write = !(*endpoint)->emulated_write(), read = !(*endpoint)->emulated_read();
    if (!write && !read && !config_.emulated) {
      why_ += (why_.empty() ? "" : "; ") + found.device.name +
              " has no RDMA, CPUs would copy the bytes: libfabric.emulated=true takes it";
      return false;
    }
    if (write != read) {
      const Cap missing = write ? Cap::read : Cap::write;
      found.device.caps &= ~static_cast<std::uint32_t>(missing);
    }
    return true;
  }

  const FabricConfig config_;
  std::optional<FabricApi> api_;
  const bool given_;
  bool looked_ = false;
  std::vector<FoundDevice> found_;
  std::string why_;
};

// require=libfabric:tcp asks for a provider as clearly as libfabric.providers does.
void add_required(const std::string& require, FabricConfig& config) {
  constexpr std::string_view kPrefix = "libfabric:";
  if (!require.starts_with(kPrefix)) return;
  const std::string device = require.substr(kPrefix.size());
  const std::string provider = device.substr(0, device.find_first_of("-:*"));
  if (provider.empty() || has_word(config.providers, provider)) return;
  config.providers += "," + provider;
}

}  // namespace

std::unique_ptr<Transport> make_transport(const FabricConfig& config, const FabricApi& api) {
  return std::make_unique<FabricTransport>(config, api);
}

}  // namespace libfabric

std::vector<Setting> libfabric_settings() { return libfabric::settings_rows(); }

std::unique_ptr<Transport> make_libfabric_transport(const Settings& settings) {
  auto config = settings.read<libfabric::FabricConfig>(libfabric::settings_rows());
  libfabric::add_required(settings.value("require").text, config);
  return std::make_unique<libfabric::FabricTransport>(std::move(config), std::nullopt);
}

}  // namespace kvl
