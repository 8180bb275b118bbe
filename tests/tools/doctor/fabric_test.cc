// What doctor says of hosts that are described by files.
#include "tools/doctor/fabric.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace kvl::tools {
namespace {

namespace fs = std::filesystem;
using State = Check::State;

// A root with /sys, /dev and libraries; gone with the object.
class Host {
 public:
  Host() : root_(fs::path(testing::TempDir()) / ("kvlane-host-" + std::to_string(::getpid()))) {
    fs::remove_all(root_);
    fs::create_directories(root_);
    write("proc/meminfo", "HugePages_Total: 0\n");
    write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  }
  ~Host() { fs::remove_all(root_); }
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  void write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  void remove(const std::string& path) { fs::remove_all(root_ / path); }
  // An RDMA device whose files are all as they should be.
  void device(const std::string& name, const std::string& driver, bool ethernet) {
    const std::string at = "sys/class/infiniband/" + name + "/";
    write(at + "ports/1/state", "4: ACTIVE\n");
    write(at + "ports/1/rate", "400 Gb/sec (4X NDR)\n");
    write(at + "ports/1/link_layer", ethernet ? "Ethernet\n" : "InfiniBand\n");
    write(at + "ports/1/gids/0", "fe80:0000:0000:0000:0000:0000:0000:0001\n");
    write(at + "ports/1/gids/1", "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
    write(at + "ports/1/gid_attrs/types/0", "IB/RoCE v1\n");
    write(at + "ports/1/gid_attrs/types/1", "RoCE v2\n");
    if (ethernet) write(at + "device/net/eth0/mtu", "9000\n");
    fs::create_directories(root_ / at / "device");
    fs::create_symlink("../../../drivers/" + driver, root_ / at / "device/driver");
    const std::string verbs = "uverbs" + std::to_string(devices_++);
    write("sys/class/infiniband_verbs/" + verbs + "/ibdev", name);
    write("dev/infiniband/" + verbs, "");
  }
  std::vector<Check> check(std::uint64_t locked_bytes = UINT64_MAX) const {
    FabricPlaces places;
    places.sys = root_ / "sys";
    places.dev = root_ / "dev";
    places.meminfo = root_ / "proc/meminfo";
    places.libfabrics = {root_ / "opt/libfabric.so.1", root_ / "usr/libfabric.so.1"};
    return check_fabrics(places, locked_bytes);
  }

 private:
  const fs::path root_;
  int devices_ = 0;
};

// The one check of that name; State::ok for all others.
Check only(const std::vector<Check>& checks, const std::string& name) {
  Check found;
  for (const Check& check : checks) {
    if (check.name == name) {
      found = check;
    } else {
      EXPECT_EQ(check.state, State::ok) << check.name << ": " << check.found;
    }
    EXPECT_EQ(check.state == State::ok, check.remedy.empty()) << check.name;
  }
  EXPECT_EQ(found.name, name);
  return found;
}

TEST(DoctorFabric, AHostWithoutDevicesHearsNothing) { EXPECT_TRUE(Host().check(0).empty()); }

TEST(DoctorFabric, AGoodHostIsGood) {
  Host host;
  host.device("mlx5_0", "mlx5_core", true);
  host.device("rdmap16s27", "efa", false);
  host.write("opt/libfabric.so.1", "");
  for (const Check& check : host.check()) {
    EXPECT_EQ(check.state, State::ok) << check.name << ": " << check.found;
  }
}

TEST(DoctorFabric, ADeviceWithoutADriverIsAProblem) {
  Host host;
  host.write("sys/bus/pci/devices/0000:10:1b.0/vendor", "0x1d0f\n");
  host.write("sys/bus/pci/devices/0000:10:1b.0/device", "0xefa2\n");
  const Check check = only(host.check(), "rdma_devices");
  EXPECT_EQ(check.state, State::problem);
  EXPECT_NE(check.found.find("0000:10:1b.0"), std::string::npos);
}

TEST(DoctorFabric, AContainerWithoutItsDeviceFilesIsAProblem) {
  Host host;
  host.device("mlx5_0", "mlx5_core", true);
  host.remove("dev/infiniband");
  const Check check = only(host.check(), "rdma_files");
  EXPECT_EQ(check.state, State::problem);
  EXPECT_NE(check.remedy.find("--device=/dev/infiniband"), std::string::npos);
}

TEST(DoctorFabric, APortThatIsDownIsTold) {
  Host host;
  host.device("mlx5_0", "mlx5_core", false);
  host.device("mlx5_1", "mlx5_core", false);
  host.write("sys/class/infiniband/mlx5_1/ports/1/state", "1: DOWN\n");
  EXPECT_EQ(only(host.check(), "rdma_ports").state, State::note);
  host.write("sys/class/infiniband/mlx5_0/ports/1/state", "2: INIT\n");
  const Check check = only(host.check(), "rdma_ports");
  EXPECT_EQ(check.state, State::problem);
  EXPECT_EQ(check.found, "mlx5_0:1 2: INIT, mlx5_1:1 1: DOWN");
}

TEST(DoctorFabric, LimitedLockedMemoryIsAProblem) {
  Host host;
  host.device("mlx5_0", "mlx5_core", false);
  EXPECT_EQ(only(host.check(65536), "rdma_locked_memory").found, "65536 bytes");
}

TEST(DoctorFabric, RoceWantsLargeFramesAndAnAddress) {
  Host host;
  host.device("mlx5_0", "mlx5_core", true);
  host.write("sys/class/infiniband/mlx5_0/device/net/eth0/mtu", "1500\n");
  EXPECT_EQ(only(host.check(), "roce_mtu").found, "eth0 1500");
  host.write("sys/class/infiniband/mlx5_0/device/net/eth0/mtu", "4200\n");
  host.write("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/1", "IB/RoCE v1\n");
  EXPECT_EQ(only(host.check(), "roce_gids").state, State::note);
}

TEST(DoctorFabric, AnEfaWantsHugePagesAndOneLibrary) {
  Host host;
  host.device("rdmap16s27", "efa", false);
  host.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
  EXPECT_EQ(only(host.check(), "huge_pages").state, State::note);
  host.write("proc/meminfo", "HugePages_Total: 512\n");
  host.write("opt/libfabric.so.1", "");
  host.write("usr/libfabric.so.1", "");
  const Check check = only(host.check(), "libfabrics");
  EXPECT_EQ(check.state, State::note);
  EXPECT_NE(check.found.find("the first is used"), std::string::npos);
}

}  // namespace
}  // namespace kvl::tools
