// The door of the tcp transport: one device per host, or one for each interface that is named.
#include <fstream>

#include "transport/base/word_list.h"
#include "transport/tcp/tcp_link.h"
#include "transport/tcp/tcp_socket.h"

namespace kvl {
namespace tcp {
namespace {

// What the kernel says about the interface's speed; 0 where it says nothing.
std::uint64_t interface_bytes_per_second(const std::string& interface) {
  if (interface.empty()) return 0;
  std::ifstream file("/sys/class/net/" + interface + "/speed");
  std::int64_t megabits = 0;
  return file >> megabits && megabits > 0 ? static_cast<std::uint64_t>(megabits) * 125'000 : 0;
}

class TcpTransport final : public Transport {
 public:
  explicit TcpTransport(TcpConfig config) : config_(std::move(config)) {}

  std::string_view name() const override { return "tcp"; }
  int rank() const override { return 90; }
  std::vector<Device> devices() override {
    std::vector<Device> all;
    for (const TcpConfig& config : configs()) {
      if (offered_addresses(config, 1).empty()) continue;
      all.push_back(describe(config));
    }
    return all;
  }
  std::string why_unusable() override {
    if (!devices().empty()) return {};
    return config_.interface.empty() ? "no network interface has an address"
                                     : "tcp.interface '" + config_.interface + "' has no address";
  }
  Result<std::unique_ptr<Link>> open(const Device& device, const LinkContext& context) override {
    for (const TcpConfig& config : configs()) {
      if (device.name == name_of(config)) return TcpLink::open(device, config, context);
    }
    return Status{Code::unavailable, "tcp.interface does not name this device"};
  }

 private:
  static std::string name_of(const TcpConfig& config) {
    return config.interface.empty() ? "host" : config.interface;
  }
  // One for each device.
  std::vector<TcpConfig> configs() const {
    std::vector<TcpConfig> all;
    for (std::string& interface : words_of(config_.interface)) {
      all.push_back(config_);
      all.back().interface = std::move(interface);
    }
    if (all.empty()) all.push_back(config_);
    return all;
  }
  static Device describe(const TcpConfig& config) {
    Device device;
    device.name = name_of(config);
    device.domain = "ip";
    device.caps = Cap::write | Cap::read | Cap::notify | Cap::host_memory | Cap::cuda_memory |
                  Cap::inter_node;
    device.limits.batches_inflight_max = static_cast<std::uint32_t>(config.batches_inflight_max);
    device.fence = Fence::immediate;
    device.bytes_per_second = interface_bytes_per_second(config.interface);
    return device;
  }

  const TcpConfig config_;
};

}  // namespace
}  // namespace tcp

std::unique_ptr<Transport> make_tcp_transport(const Settings& settings) {
  const std::vector<Setting> rows = tcp::settings_rows();
  return std::make_unique<tcp::TcpTransport>(settings.read<tcp::TcpConfig>(rows));
}

std::vector<Setting> tcp_settings() { return tcp::settings_rows(); }

}  // namespace kvl
