// The simulated kind of fabric: one per node, with as many devices as the test wants.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/transport.h"
#include "transport/sim/sim_world.h"

namespace kvl::sim {

class SimTransport final : public Transport {
 public:
  SimTransport(SimWorld& world, NodeId node, std::uint32_t devices = 1)
      : world_(world), node_(node), devices_(devices) {}

  std::string_view name() const override { return "sim"; }
  int rank() const override { return 50; }
  std::vector<Device> devices() override;
  std::string why_unusable() override { return "every simulated device of this node is dead"; }
  Result<std::unique_ptr<Link>> open(const Device&, const LinkContext&) override;

 private:
  SimWorld& world_;
  const NodeId node_;
  const std::uint32_t devices_;
};

}  // namespace kvl::sim
