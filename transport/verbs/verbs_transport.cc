// The door of the verbs transport: what this host has.
#include "transport/verbs/verbs_transport.h"

#include <optional>

#include "transport/verbs/verbs_link.h"

namespace kvl {
namespace verbs {
namespace {

class VerbsTransport final : public Transport {
 public:
  VerbsTransport(VerbsConfig config, std::optional<VerbsApi> api, Places places)
      : config_(std::move(config)), api_(api), places_(std::move(places)) {}

  std::string_view name() const override { return "verbs"; }
  int rank() const override { return 21; }

  std::vector<Device> devices() override {
    look();
    std::vector<Device> all;
    for (const FoundPort& found : found_) all.push_back(found.device);
    return all;
  }

  std::string why_unusable() override {
    look();
    return found_.empty() ? why_ : "";
  }

  Result<std::unique_ptr<Link>> open(const Device& device, const LinkContext& context) override {
    look();
    for (const FoundPort& found : found_) {
      if (found.device.name == device.name) {
        return VerbsLink::open(*api_, found, config_, context);
      }
    }
    return Status{Code::unavailable, "libibverbs does not list this device any more"};
  }

 private:
  // Once. Where nothing could come of it the library is not even opened.
  void look() {
    if (looked_) return;
    looked_ = true;
    why_ = missing_on_host(places_);
    if (!why_.empty()) return;
    if (!api_) {
      Result<VerbsApi> api = load_verbs_api(config_.library, &why_);
      if (!api.ok()) return;
      api_ = *api;
    }
    found_ = find_ports(*api_, config_, places_, &why_);
  }

  const VerbsConfig config_;
  std::optional<VerbsApi> api_;
  const Places places_;
  bool looked_ = false;
  std::vector<FoundPort> found_;
  std::string why_;
};

}  // namespace

std::unique_ptr<Transport> make_transport(const VerbsConfig& config, const VerbsApi& api,
                                          const Places& places) {
  return std::make_unique<VerbsTransport>(config, api, places);
}

}  // namespace verbs

std::vector<Setting> verbs_settings() { return verbs::settings_rows(); }

std::unique_ptr<Transport> make_verbs_transport(const Settings& settings) {
  auto config = settings.read<verbs::VerbsConfig>(verbs::settings_rows());
  return std::make_unique<verbs::VerbsTransport>(std::move(config), std::nullopt, verbs::Places{});
}

}  // namespace kvl
