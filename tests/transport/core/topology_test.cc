// Topology: a described two-socket machine with GPUs and fabric NICs below PCI switches, and this
// one.
#include "transport/core/topology.h"

#include <gtest/gtest.h>

namespace kvl {
namespace {

using Kind = TopologyDevice::Kind;

Topology two_sockets() {
  return Topology::from_xml(KVL_FIXTURES "/two_sockets_four_gpus.xml").value();
}

TEST(Topology, ReadsDevicesNodesAndProcessors) {
  const Topology topology = two_sockets();
  EXPECT_EQ(topology.numa_nodes(), 2);
  EXPECT_EQ(topology.cpus(1), (std::vector<int>{2, 3}));
  EXPECT_TRUE(topology.cpus(7).empty());
  ASSERT_NE(topology.find("cuda3"), nullptr);
  EXPECT_EQ(topology.find("cuda3")->kind, Kind::gpu);
  EXPECT_EQ(topology.find("cuda3")->numa_node, 1);
  EXPECT_EQ(topology.find("cuda0")->pci, "0000:11:00.0");
  EXPECT_EQ(topology.find("ens5")->kind, Kind::network);
  EXPECT_EQ(topology.find("absent"), nullptr);
}

TEST(Topology, EveryGpuFindsTheNicsBelowItsSwitch) {
  const Topology topology = two_sockets();
  EXPECT_EQ(nearest(topology, *topology.find("cuda0"), Kind::fabric),
            (std::vector<std::string>{"rdmap18s0", "rdmap19s0"}));
  EXPECT_EQ(nearest(topology, *topology.find("cuda3"), Kind::fabric),
            (std::vector<std::string>{"rdmap162s0", "rdmap163s0"}));
}

TEST(Topology, DistancesGrowWithThePath) {
  const Topology topology = two_sockets();
  const auto far = [&](const char* a, const char* b) {
    return distance(*topology.find(a), *topology.find(b));
  };
  EXPECT_EQ(far("cuda0", "rdmap18s0"), Distance::same_switch);
  EXPECT_EQ(far("cuda0", "rdmap34s0"), Distance::same_root);
  EXPECT_EQ(far("cuda0", "ens5"), Distance::same_root);
  EXPECT_EQ(far("cuda0", "rdmap146s0"), Distance::cross_numa);
  EXPECT_EQ(far("cuda2", "cuda0"), Distance::cross_numa);
}

TEST(Topology, ReadsThisMachineAndRefusesNonsense) {
  const auto here = Topology::discover();
  ASSERT_TRUE(here.ok());
  EXPECT_GE(here->numa_nodes(), 1);
  EXPECT_FALSE(here->cpus(0).empty());
  EXPECT_FALSE(Topology::from_xml("/nonexistent.xml").ok());
}

}  // namespace
}  // namespace kvl
