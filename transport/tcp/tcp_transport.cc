// The door of the tcp transport: one device per host, always usable.
#include <fstream>

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
    if (offered_addresses(config_, 1).empty()) return {};
    Device device;
    device.name = config_.interface.empty() ? "host" : config_.interface;
    device.domain = "ip";
    device.caps = Cap::write | Cap::read | Cap::notify | Cap::host_memory | Cap::cuda_memory |
                  Cap::inter_node;
    device.limits.batches_inflight_max = static_cast<std::uint32_t>(config_.batches_inflight_max);
    device.fence = Fence::immediate;
    device.bytes_per_second = interface_bytes_per_second(config_.interface);
    return {device};
  }
  std::string why_unusable() override {
    if (!devices().empty()) return {};
    return config_.interface.empty() ? "no network interface has an address"
                                     : "tcp.interface '" + config_.interface + "' has no address";
  }
  Result<std::unique_ptr<Link>> open(const Device& device, const LinkContext& context) override {
    return TcpLink::open(device, config_, context);
  }

 private:
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
