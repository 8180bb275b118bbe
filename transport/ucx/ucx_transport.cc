// The door of the UCX transport: which of UCX's transports may be used, and what they have.
#include "transport/ucx/ucx_transport.h"

#include <algorithm>
#include <optional>

#include "transport/base/word_list.h"
#include "transport/ucx/ucx_link.h"

namespace kvl {
namespace ucx {
namespace {

class UcxTransport final : public Transport {
 public:
  UcxTransport(UcxConfig config, std::optional<UcxApi> api)
      : config_(std::move(config)), api_(api) {}

  std::string_view name() const override { return "ucx"; }
  int rank() const override { return 25; }

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
      if (found.device.name == device.name) return UcxLink::open(*api_, found, config_, context);
    }
    return Status{Code::unavailable, "UCX does not have this device any more"};
  }

 private:
  // Once: to ask UCX is expensive, and what it has does not change while we run.
  void look() {
    if (looked_) return;
    looked_ = true;
    // The library puts hooks into its process: not where nothing could come of it.
    const std::vector<std::string> names = words_of(config_.transports);
    if (names.empty()) {
      why_ = "UCX must be asked for: ucx.transports=tcp, or require=ucx:rc";
      return;
    }
    if (!api_) {
      Result<UcxApi> api = load_ucx_api(config_.library, &why_);
      if (!api.ok()) return;
      api_ = *api;
    }
    found_ = find_devices(*api_, config_, names, &why_);
  }

  const UcxConfig config_;
  std::optional<UcxApi> api_;
  bool looked_ = false;
  std::vector<FoundDevice> found_;
  std::string why_;
};

// require=ucx:tcp asks for a transport as clearly as ucx.transports does.
void add_required(const std::string& require, UcxConfig& config) {
  constexpr std::string_view kPrefix = "ucx:";
  if (!require.starts_with(kPrefix)) return;
  const std::string device = require.substr(kPrefix.size());
  const std::string wanted = device.substr(0, device.find('-'));
  const std::vector<std::string> listed = words_of(config.transports);
  const bool have = std::any_of(listed.begin(), listed.end(),
                                [&](const std::string& name) { return name.starts_with(wanted); });
  if (!wanted.empty() && !have) config.transports += (listed.empty() ? "" : ",") + wanted;
}

}  // namespace

std::unique_ptr<Transport> make_transport(const UcxConfig& config, const UcxApi& api) {
  return std::make_unique<UcxTransport>(config, api);
}

}  // namespace ucx

std::vector<Setting> ucx_settings() { return ucx::settings_rows(); }

std::unique_ptr<Transport> make_ucx_transport(const Settings& settings) {
  auto config = settings.read<ucx::UcxConfig>(ucx::settings_rows());
  ucx::add_required(settings.value("require").text, config);
  return std::make_unique<ucx::UcxTransport>(std::move(config), std::nullopt);
}

}  // namespace kvl
