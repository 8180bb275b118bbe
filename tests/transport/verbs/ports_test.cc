// Which ports are used and how they are addressed, what is said of others, limits of registration.
#include <cerrno>

#include "tests/transport/verbs/link_fixture.h"
#include "transport/verbs/verbs_memory.h"
#include "transport/verbs/verbs_port.h"
#include "transport/verbs/verbs_wire.h"

namespace kvl {
std::unique_ptr<Transport> make_verbs_transport(const Settings&);

namespace verbs {
namespace {

using test::gid_entry;

constexpr ibv_gid_type kV1 = IBV_GID_TYPE_ROCE_V1, kV2 = IBV_GID_TYPE_ROCE_V2;

class VerbsPortsTest : public VerbsLinkTest {
 protected:
  std::vector<Device> look() {
    transport = make_transport(config, fake.api(), host.places());
    return transport->devices();
  }
  std::string why() {
    EXPECT_TRUE(look().empty());
    return transport->why_unusable();
  }
};

TEST_F(VerbsPortsTest, WhatIsKnownOfADevice) {
  const std::vector<Device> devices = look();
  ASSERT_EQ(devices.size(), 1U);
  EXPECT_EQ(devices[0].name, "fake0");
  EXPECT_EQ(devices[0].domain, "roce/ipv4");
  EXPECT_EQ(devices[0].numa_node, 1);
  EXPECT_EQ(devices[0].bytes_per_second, 50'000'000'000U);
  EXPECT_EQ(devices[0].fence, Fence::immediate);
  EXPECT_EQ(transport->why_unusable(), "");
}

TEST_F(VerbsPortsTest, GidIsChosen) {
  struct Case {
    std::vector<ibv_gid_entry> table;
    std::int64_t forced;
    int index;  // -1: none
    const char* domain;
  };
  const ibv_gid_entry link_local = gid_entry(0, kV2, "fe80::1");
  const ibv_gid_entry global = gid_entry(2, kV2, "2001:db8::1");
  const ibv_gid_entry mapped = gid_entry(3, kV2, "::ffff:10.0.0.1");
  const ibv_gid_entry mapped_v1 = gid_entry(1, kV1, "::ffff:10.0.0.1");
  const ibv_gid_entry elsewhere = gid_entry(9, kV2, "::ffff:10.0.0.2", 2);
  const Case cases[] = {
      {{link_local, mapped_v1, global, mapped, elsewhere}, -1, 3, "roce/ipv4"},
      {{mapped, global, link_local}, -1, 3, "roce/ipv4"},
      {{link_local, mapped_v1, global}, -1, 2, "roce/ipv6"},
      {{mapped_v1, link_local}, -1, 0, "roce/link-local"},
      {{mapped_v1, elsewhere}, -1, -1, ""},
      {{}, -1, -1, ""},
      {{link_local, global, mapped}, 0, 0, "roce/link-local"},
      {{link_local, mapped_v1, mapped}, 1, 1, "roce/ipv4"},
      {{link_local, mapped}, 7, -1, ""},
  };
  for (const Case& each : cases) {
    fake.ports[0].gids = each.table;
    config.gid_index = each.forced;
    const std::vector<Device> devices = look();
    if (each.index < 0) {
      EXPECT_TRUE(devices.empty());
      EXPECT_NE(transport->why_unusable().find("GID"), std::string::npos);
      continue;
    }
    ASSERT_EQ(devices.size(), 1U);
    EXPECT_EQ(devices[0].domain, each.domain);
    const auto context = open_context(fake.api(), "fake0");
    EXPECT_EQ(address_of(fake.api(), context->get(), 1, config)->gid_index, each.index);
  }
}

TEST_F(VerbsPortsTest, InfinibandGoesByLid) {
  fake.ports[0].link_layer = IBV_LINK_LAYER_INFINIBAND;
  fake.ports[0].lid = 17;
  fake.ports[0].gids = {gid_entry(0, IBV_GID_TYPE_IB, "fe80::1")};
  config.service_level = 3;
  open();
  EXPECT_EQ(transport->devices()[0].domain, "ib/fe:80:0:0:0:0:0:0");
  EXPECT_EQ(fake.last_ready.ah_attr.is_global, 0);
  EXPECT_EQ(fake.last_ready.ah_attr.dlid, 17);
  EXPECT_EQ(fake.last_ready.ah_attr.sl, 3);
  EXPECT_EQ(end_of(post(4)), Code::ok);
}

TEST_F(VerbsPortsTest, RoceGoesByGid) {
  fake.ports[0].mtu = IBV_MTU_2048;
  config.traffic_class = 106;
  open();
  EXPECT_EQ(fake.last_ready.ah_attr.is_global, 1);
  EXPECT_EQ(fake.last_ready.ah_attr.grh.sgid_index, 1);
  EXPECT_EQ(fake.last_ready.ah_attr.grh.traffic_class, 106);
  EXPECT_EQ(fake.last_ready.path_mtu, IBV_MTU_2048);
}

TEST_F(VerbsPortsTest, PortsHaveTheirOwnNames) {
  fake.ports.resize(2);
  fake.ports[1].gids = {gid_entry(1, kV2, "::ffff:10.0.0.2", 2)};
  std::vector<Device> devices = look();
  ASSERT_EQ(devices.size(), 2U);
  EXPECT_EQ(devices[0].name, "fake0-1");
  EXPECT_EQ(devices[1].name, "fake0-2");
  fake.ports[0].state = IBV_PORT_DOWN;
  devices = look();
  ASSERT_EQ(devices.size(), 1U);
  EXPECT_EQ(devices[0].name, "fake0-2");
}

TEST_F(VerbsPortsTest, WhyNot) {
  fake.ports[0].state = IBV_PORT_DOWN;
  EXPECT_NE(why().find("fake0: its port is not active"), std::string::npos);
  fake.open_error = EACCES;
  EXPECT_NE(why().find("Permission denied"), std::string::npos);
  config.devices = "mlx5_0,mlx5_1";
  EXPECT_NE(why().find("verbs.devices"), std::string::npos);
  config.devices = "";
  fake.transport = IBV_TRANSPORT_IWARP;
  EXPECT_NE(why().find("rdma_cm"), std::string::npos);
  fake.transport = IBV_TRANSPORT_UNSPECIFIED;
  EXPECT_NE(why().find("EFA"), std::string::npos);
  host.remove("nodes/uverbs0");
  EXPECT_NE(why().find("--device=/dev/infiniband"), std::string::npos);
  host.remove("sysfs/fake0");
  EXPECT_NE(why().find("rdma link add"), std::string::npos);
  host.remove("sysfs");
  EXPECT_NE(why().find("no RDMA device"), std::string::npos);
}

TEST_F(VerbsPortsTest, LibraryIsMissedAloud) {
  std::string reason;
  EXPECT_EQ(load_verbs_api("/nowhere/libibverbs.so.1", &reason).code(), Code::unavailable);
  EXPECT_NE(reason.find("/nowhere/libibverbs.so.1"), std::string::npos);
  EXPECT_EQ(load_verbs_api("libm.so.6", &reason).code(), Code::unavailable);
  EXPECT_NE(reason.find("too old"), std::string::npos);
}

TEST_F(VerbsPortsTest, RegistrationSaysWhatToDo) {
  fake.limits.max_mr_size = 1 << 22;
  open();
  struct Case {
    int error;
    Code code;
    const char* text;
  };
  const Case cases[] = {{ENOMEM, Code::exhausted, "ulimit -l"},
                        {ENOSPC, Code::exhausted, "huge pages"},
                        {EFAULT, Code::invalid_argument, "not mapped"},
                        {EIO, Code::unavailable, "NIC"}};
  const Memory memory{a->memory.data(), 4096};
  for (const Case& each : cases) {
    fake.register_error = each.error;
    const Status status = a->link->add_memory(memory).status();
    EXPECT_EQ(status.code(), each.code);
    EXPECT_NE(status.to_string().find(each.text), std::string::npos) << status.to_string();
  }
  fake.register_error = 0;
  EXPECT_EQ(a->link->add_memory({a->memory.data(), (1 << 22) + 1}).code(), Code::exhausted);
  EXPECT_TRUE(a->link->add_memory(memory).ok());
}

// Memory that no CPU may touch is registered by its dmabuf.
TEST_F(VerbsPortsTest, DmabufIsRegistered) {
  const auto buffer = SharedBuffer::open(8192);  // any descriptor will do for this device
  Memory memory = (*buffer)->memory(Access::remote_all);
  memory.kind = MemoryKind::cuda;
  const auto found = find_ports(fake.api(), config, host.places(), nullptr);
  const auto port = OpenPort::open(fake.api(), found.at(0), config);
  ASSERT_TRUE(port.ok());
  VerbsMemory table(**port);
  const auto id = table.add(memory, true);
  ASSERT_TRUE(id.ok()) << id.status().to_string();
  EXPECT_EQ(fake.dmabufs, 1U);
  EXPECT_EQ(table.tell(*id, 1)->bytes, 8192U);
  EXPECT_TRUE(table.remove(*id).ok());
  fake.takes_dmabuf = false;
  EXPECT_EQ(table.add(memory, true).code(), Code::unsupported);
  memory.shared_fd = -1;
  EXPECT_EQ(table.add(memory, true).code(), Code::unsupported);
}

TEST_F(VerbsPortsTest, QueuePairsRunOut) {
  fake.limits.max_qp = 3;
  open();
  ASSERT_TRUE(a->link->open_peer(PeerRole::active).ok());
  EXPECT_EQ(a->link->open_peer(PeerRole::active).code(), Code::exhausted);
  EXPECT_EQ(end_of(post(4)), Code::ok);
}

// Every bit of an offer is looked at.
TEST(VerbsWire, OffersAreChecked) {
  Offer offer;
  offer.token.peer = 5;
  offer.address.number = 0x1234;
  offer.address.mtu = IBV_MTU_4096;
  const Blob blob = encode(offer);
  ASSERT_TRUE(decode_offer(blob).ok());
  EXPECT_EQ(decode_offer(blob)->address.number, 0x1234U);
  for (std::size_t bit = 0; bit < blob.size() * 8; ++bit) {
    Blob changed = blob;
    changed[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    EXPECT_FALSE(decode_offer(changed).ok()) << bit;
  }
  for (std::size_t bytes = 0; bytes < blob.size(); ++bytes) {
    EXPECT_FALSE(decode_offer(std::span(blob).first(bytes)).ok());
  }
  offer.address.mtu = 6;
  EXPECT_FALSE(decode_offer(encode(offer)).ok());
  offer.address.mtu = IBV_MTU_256;
  offer.address.number = 1 << 24;
  EXPECT_FALSE(decode_offer(encode(offer)).ok());
}

}  // namespace
}  // namespace verbs
}  // namespace kvl
