// kvlane bench and doctor between two hosts: two network namespaces and a link of 2 Gbit/s.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "tests/tools/bench/program.h"

namespace kvl {
namespace {

using test::json_field;
using test::json_number;
using test::Program;

constexpr double kLinkGbPerS = 2e9 / 8 / 1e9;

// Two namespaces joined by a shaped pair of devices; gone with the object.
class TwoHosts {
 public:
  TwoHosts() {
    const std::string id = std::to_string(::getpid());
    here_ = "kvl-a" + id;
    there_ = "kvl-b" + id;
    const std::string pair = "ip link add kvla" + id + " netns " + here_ +
                             " type veth peer name kvlb" + id + " netns " + there_;
    ok_ = run("ip netns add " + here_) && run("ip netns add " + there_) && run(pair) &&
          bring_up(here_, "kvla" + id, "10.213.7.1") && bring_up(there_, "kvlb" + id, "10.213.7.2");
  }
  ~TwoHosts() {
    run("ip netns del " + here_);
    run("ip netns del " + there_);
  }
  TwoHosts(const TwoHosts&) = delete;
  TwoHosts& operator=(const TwoHosts&) = delete;

  bool ok() const { return ok_; }
  std::vector<std::string> here() const { return {"ip", "netns", "exec", here_}; }
  std::vector<std::string> there() const { return {"ip", "netns", "exec", there_}; }

 private:
  static bool run(const std::string& command) {
    return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
  }
  static bool bring_up(const std::string& space, const std::string& device,
                       const std::string& address) {
    const std::string in = "ip netns exec " + space + " ";
    return run(in + "ip link set lo up") &&
           run(in + "ip addr add " + address + "/24 dev " + device) &&
           run(in + "ip link set " + device + " up") &&
           run(in + "tc qdisc add dev " + device + " root tbf rate 2gbit burst 1mb latency 50ms");
  }
  std::string here_, there_;
  bool ok_ = false;
};

TEST(BenchBetweenHosts, ComparesAndExplains) {
  const TwoHosts hosts;
  if (!hosts.ok()) GTEST_SKIP() << "network namespaces with tbf need root and iproute2";
  const std::string path = ::testing::TempDir() + "kvlane_netns_" + std::to_string(::getpid());
  std::ofstream(path) << "two hosts that trust each other by this secret\n";
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  const std::string secret = " --secret_file " + path;
  Program server("bench --serve 10.213.7.1:0" + secret, hosts.here());
  const std::string address = server.read_line();
  ASSERT_NE(address.find("10.213.7.1:"), std::string::npos) << server.errors;

  Program bench("bench --peer " + address +
                    " --compare tcp,tcp --page-bytes 16k,256k --pages 64 --arena-bytes 16m"
                    " --seconds 0.5 --model llama-3.1-70b --prompt-tokens 8000 --verify --json" +
                    secret,
                hosts.there());
  ASSERT_EQ(bench.wait(), 0) << bench.errors;
  std::istringstream lines(bench.output);
  std::string row;
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(std::getline(lines, row));
    EXPECT_EQ(json_field(row, "wrong_bytes"), "0") << row;
    for (const char* key : {"first_gb_per_s", "second_gb_per_s", "socket_gb_per_s"}) {
      EXPECT_GT(json_number(row, key), 0) << key << " in " << row;
      EXPECT_LT(json_number(row, key), kLinkGbPerS * 1.3) << key << " in " << row;
    }
    // 8,000 tokens of 320 KiB over at most 2 Gbit/s take ten seconds and more.
    EXPECT_GT(json_number(row, "first_transfer_ms"), 7000) << row;
    EXPECT_NE(json_field(row, "verdict"), "") << row;
  }
  ASSERT_TRUE(std::getline(lines, row));
  EXPECT_NE(json_field(row, "final_verdict").find("llama-3.1-70b"), std::string::npos) << row;

  // Shared memory does not reach another host, and doctor says so.
  Program refused(
      "bench --peer " + address + " --compare shm,tcp --timeout-ms 4000 --pages 4" + secret,
      hosts.there());
  EXPECT_EQ(refused.wait(), 1);
  EXPECT_NE(refused.errors.find("shm"), std::string::npos) << refused.errors;
  Program doctor("doctor --json " + address + secret, hosts.there());
  EXPECT_EQ(doctor.wait(), 0) << doctor.errors;
  EXPECT_EQ(json_field(doctor.output, "transport"), "tcp") << doctor.output;
  EXPECT_NE(doctor.output.find("not in one domain"), std::string::npos) << doctor.output;

  server.signal(SIGTERM);
  EXPECT_EQ(server.wait(20), 0);
}

}  // namespace
}  // namespace kvl
