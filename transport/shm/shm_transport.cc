// The shm transport: same host, same user, one copy.
#include <sys/mman.h>
#include <sys/prctl.h>

#include <array>
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/unique_fd.h"
#include "transport/shm/shm_link.h"
#include "transport/shm/shm_socket.h"

namespace kvl {
namespace shm {
namespace {

std::string domain_of(const HostIdentity& host) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (const std::byte b : host.boot_id) {
    text += digits[std::to_integer<std::size_t>(b >> 4)];
    text += digits[std::to_integer<std::size_t>(b & std::byte{15})];
  }
  return text + "/uid" + std::to_string(host.uid) + "/net" + std::to_string(host.net_namespace);
}

// What the kernel must have: sealed memfds and abstract sockets.
Status probe() {
  const Result<Outbox> outbox = Outbox::open();
  if (!outbox.ok()) return outbox.status();
  const Result<UniqueFd> listener = listen_on(random_token());
  return listener.status();
}

class ShmTransport final : public Transport {
 public:
  explicit ShmTransport(const ShmConfig& config) : config_(config) {}

  std::string_view name() const override { return "shm"; }
  int rank() const override { return 10; }

  std::vector<Device> devices() override {
    const Result<HostIdentity> host = host_identity();
    if (!host.ok() || !probe().ok()) return {};
    Device device;
    device.name = "host";
    device.domain = domain_of(*host);
    device.caps = Cap::write | Cap::read | Cap::notify | Cap::host_memory;
    device.fence = Fence::process_exit;
    device.bytes_per_second = 10'000'000'000;
    return {device};
  }

  std::string why_unusable() override {
    const Result<HostIdentity> host = host_identity();
    const Status status = host.ok() ? probe() : host.status();
    if (status.ok()) return "";
    return "shm needs memfd sealing, abstract sockets and /proc: " + status.to_string();
  }

  Result<std::unique_ptr<Link>> open(const Device& device, const LinkContext& context) override {
    Result<HostIdentity> host = host_identity();
    if (!host.ok()) return host.status();
    if (config_.allow_ptrace) ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    Result<std::unique_ptr<ShmLink>> link = ShmLink::open(device, config_, *host, context);
    if (!link.ok()) return link.status();
    return std::unique_ptr<Link>(std::move(link).value());
  }

 private:
  const ShmConfig config_;
};

}  // namespace
}  // namespace shm

std::vector<Setting> shm_settings() {
  using shm::ShmConfig;
  return {
      setting<&ShmConfig::connect_timeout_ms>("shm.connect_timeout_ms", "ms", 1, 600'000,
                                              "from the exchange of offers to peer_up"),
      setting<&ShmConfig::close_timeout_ms>(
          "shm.close_timeout_ms", "ms", 1, 600'000,
          "how long a closed peer may stay inside our memory before it is given up unfenced"),
      setting<&ShmConfig::poll_bytes>("shm.poll_bytes", "bytes", 4096, 1 << 30,
                                      "copied by one poll at most, all peers together"),
      setting<&ShmConfig::cross_memory>(
          "shm.cross_memory", "", 0, 0,
          "reach memory that is no SharedBuffer with process_vm_readv and process_vm_writev"),
      setting<&ShmConfig::allow_ptrace>(
          "shm.allow_ptrace", "", 0, 0,
          "let every process of this user attach to this one (PR_SET_PTRACER_ANY), which "
          "shm.cross_memory needs where kernel.yama.ptrace_scope is 1"),
  };
}

std::unique_ptr<Transport> make_shm_transport(const Settings& settings) {
  return std::make_unique<shm::ShmTransport>(settings.read<shm::ShmConfig>(shm_settings()));
}

}  // namespace kvl
