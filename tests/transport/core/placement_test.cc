// Which devices are near to a GPU, on the hosts that people rent.
#include "transport/core/placement.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "tests/transport/core/machine_xml.h"

namespace kvl {
namespace {

using test::PciSwitch;

Topology read(const std::string& xml) {
  std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
  std::ranges::replace(name, '/', '-');
  const std::filesystem::path file =
      std::filesystem::path(testing::TempDir()) /
      ("kvlane-machine-" + std::to_string(::getpid()) + "-" + name + ".xml");
  std::ofstream(file) << xml;
  auto topology = Topology::from_xml(file.string());
  std::filesystem::remove(file);
  EXPECT_TRUE(topology.ok()) << topology.status().to_string();
  return std::move(topology).value();
}

// Instance types of EC2 and an 8-GPU InfiniBand host: GPUs and NICs of each PCI switch. Sources:
// the topologies in aws-ofi-nccl and NVIDIA's DGX manuals.
struct Host {
  const char* name;
  int switches, gpus_each, nics_each;
  const char* nic;
  std::size_t near;  // NICs that are nearest to a GPU
};
class Hosts : public testing::TestWithParam<Host> {};

std::string nic_name(const Host& host, int number) {
  // EFA devices are named by their PCI place, InfiniBand ones by number.
  return std::string(host.nic) == "mlx5_" ? "mlx5_" + std::to_string(number)
                                          : "rdmap" + std::to_string(79 + number) + "s0";
}

std::vector<Device> devices_of(const Host& host) {
  std::vector<Device> devices;
  for (int i = 0; i < host.switches * host.nics_each; ++i) {
    Device& device = devices.emplace_back();
    device.name = std::string(host.nic) == "mlx5_" ? nic_name(host, i) + ":1"
                                                   : "efa-direct-" + nic_name(host, i) + "-rdm";
  }
  return devices;
}

Topology machine(const Host& host, bool named) {
  std::vector<PciSwitch> switches;
  int gpu = 0, nic = 0;
  for (int s = 0; s < host.switches; ++s) {
    PciSwitch& one = switches.emplace_back();
    one.numa = s * 2 / host.switches;
    for (int i = 0; i < host.gpus_each; ++i) {
      one.gpus.push_back(named ? "cuda" + std::to_string(gpu++) : "");
    }
    for (int i = 0; i < host.nics_each; ++i) one.nics.push_back(nic_name(host, nic++));
  }
  return read(test::machine_xml(2, switches));
}

TEST_P(Hosts, EveryGpuUsesTheDevicesBelowItsSwitch) {
  const Host& host = GetParam();
  const Topology topology = machine(host, true);
  const std::vector<Device> devices = devices_of(host);
  for (int gpu = 0; gpu < host.switches * host.gpus_each; ++gpu) {
    std::string error;
    const auto place = find_near(topology, "cuda" + std::to_string(gpu), &error);
    ASSERT_TRUE(place.ok()) << error;
    const std::vector<Nearness> near = nearness(topology, *place, devices);
    EXPECT_EQ(std::ranges::count(near, 0), static_cast<std::ptrdiff_t>(host.near));
    const int first = gpu / host.gpus_each * host.nics_each;
    for (int nic = 0; nic < host.nics_each; ++nic) {
      EXPECT_EQ(near[static_cast<std::size_t>(first + nic)], 0) << "GPU " << gpu << " NIC " << nic;
    }
  }
}

// A container seldom has hwloc's plugin for CUDA: the PCI address finds the GPU, however written.
TEST_P(Hosts, AGpuIsFoundByItsPciAddress) {
  const Host& host = GetParam();
  const Topology named = machine(host, true), unnamed = machine(host, false);
  const std::vector<Device> devices = devices_of(host);
  for (const TopologyDevice& gpu : named.devices()) {
    if (gpu.kind != TopologyDevice::Kind::gpu) continue;
    std::string capitals = "0000" + gpu.pci;
    std::ranges::transform(capitals, capitals.begin(), [](char c) { return std::toupper(c); });
    for (const std::string& text : {gpu.pci, gpu.pci.substr(5), capitals}) {
      std::string error;
      const auto place = find_near(unnamed, text, &error);
      ASSERT_TRUE(place.ok()) << error;
      EXPECT_EQ(nearness(unnamed, *place, devices), nearness(named, gpu, devices));
    }
  }
}

TEST_P(Hosts, ANumaNodeIsNearToTheDevicesOfItsSocket) {
  const Host& host = GetParam();
  const Topology topology = machine(host, true);
  const std::vector<Device> devices = devices_of(host);
  std::string error;
  const auto place = find_near(topology, "numa:1", &error);
  ASSERT_TRUE(place.ok()) << error;
  const std::vector<Nearness> near = nearness(topology, *place, devices);
  for (std::size_t i = 0; i < near.size(); ++i) EXPECT_EQ(near[i], i < near.size() / 2 ? 1 : 0);
}

INSTANTIATE_TEST_SUITE_P(
    All, Hosts,
    testing::Values(Host{"p4d", 4, 2, 1, "rdmap", 1}, Host{"p5", 8, 1, 4, "rdmap", 4},
                    Host{"p5en", 4, 2, 4, "rdmap", 4}, Host{"p6_b200", 8, 1, 1, "rdmap", 1},
                    Host{"p6_b300", 8, 1, 2, "rdmap", 2}, Host{"infiniband", 4, 2, 2, "mlx5_", 2}),
    [](const auto& param) { return std::string(param.param.name); });

TEST(Placement, NamesAreWholeWords) {
  const Topology topology =
      read(test::machine_xml(1, {{0, {"cuda0"}, {"mlx5_1"}}, {0, {"cuda1"}, {"mlx5_10"}}}));
  std::vector<Device> devices(2);
  devices[0].name = "mlx5_10:1";
  devices[1].name = "mlx5_1:1";
  std::string error;
  const auto near = nearness(topology, *find_near(topology, "cuda1", &error), devices);
  EXPECT_EQ(near, (std::vector<Nearness>{0, 1}));
}

TEST(Placement, WhatTheTopologyDoesNotKnowIsNear) {
  const Topology topology = read(test::machine_xml(1, {{0, {"cuda0"}, {"mlx5_1"}}}));
  std::vector<Device> devices(2);
  devices[0].name = "host";
  devices[1].name = "mlx5_1:1";
  std::string error;
  EXPECT_EQ(nearness(topology, *find_near(topology, "cuda0", &error), devices),
            (std::vector<Nearness>{0, 0}));
  EXPECT_EQ(find_near(topology, "numa:1", &error).code(), Code::invalid_argument);
  EXPECT_EQ(find_near(topology, "numa:x", &error).code(), Code::invalid_argument);
  EXPECT_NE(error.find("mlx5_1"), std::string::npos) << error;
}

}  // namespace
}  // namespace kvl
