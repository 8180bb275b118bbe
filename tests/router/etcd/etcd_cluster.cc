// Processes and a little HTTP.
#include "tests/router/etcd/etcd_cluster.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "tests/router/support/stub_worker.h"
#include "tests/router/support/test_client.h"

namespace kvl::test {
namespace {

// A port that was free a moment ago: etcd must be told its ports before it starts.
std::uint16_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    std::abort();
  }
  ::close(fd);
  return ntohs(address.sin_port);
}

std::string field(const std::string& json, const std::string& name) {
  const std::string head = "\"" + name + "\":\"";
  const std::size_t at = json.find(head);
  if (at == std::string::npos) return {};
  const std::size_t from = at + head.size();
  return json.substr(from, json.find('"', from) - from);
}

}  // namespace

bool EtcdCluster::installed() { return ::access("/usr/bin/etcd", X_OK) == 0; }

EtcdCluster::EtcdCluster(EtcdOptions options) : options_(std::move(options)) {
  char folder[] = "/tmp/kvlane_etcd.XXXXXX";
  if (::mkdtemp(folder) == nullptr) std::abort();
  folder_ = folder;
  for (int i = 0; i < options_.members; ++i) members_.push_back({free_port(), free_port(), -1});
  for (int i = 0; i < members(); ++i) start(i);
  EXPECT_TRUE(wait_ready());
}

EtcdCluster::~EtcdCluster() {
  for (int i = 0; i < members(); ++i) kill(i);
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::string EtcdCluster::url(int member) const {
  const std::string scheme = options_.tls_cert.empty() ? "http" : "https";
  return scheme + "://127.0.0.1:" + std::to_string(at(member).client_port);
}

std::string EtcdCluster::urls() const {
  std::string out;
  for (int i = 0; i < members(); ++i) out += (i == 0 ? "" : ",") + url(i);
  return out;
}

void EtcdCluster::start(int member) {
  std::string cluster;
  for (int i = 0; i < members(); ++i) {
    cluster +=
        (i == 0 ? "" : ",") + name(i) + "=http://127.0.0.1:" + std::to_string(at(i).peer_port);
  }
  Member& m = at(member);
  const std::string peer = "http://127.0.0.1:" + std::to_string(m.peer_port);
  std::vector<std::string> words = {"etcd",
                                    "--name=" + name(member),
                                    "--data-dir=" + folder_ + "/" + name(member),
                                    "--listen-client-urls=" + url(member),
                                    "--advertise-client-urls=" + url(member),
                                    "--listen-peer-urls=" + peer,
                                    "--initial-advertise-peer-urls=" + peer,
                                    "--initial-cluster=" + cluster,
                                    "--heartbeat-interval=100",
                                    "--election-timeout=1000",
                                    "--logger=zap",
                                    "--log-level=error"};
  if (!options_.tls_cert.empty()) {
    words.push_back("--cert-file=" + options_.tls_cert);
    words.push_back("--key-file=" + options_.tls_key);
    words.push_back("--trusted-ca-file=" + options_.tls_ca);
    words.push_back("--client-cert-auth");
  }
  const std::string log = folder_ + "/" + name(member) + ".log";
  m.pid = ::fork();
  if (m.pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    ::dup2(out, 1);
    ::dup2(out, 2);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    ::execv("/usr/bin/etcd", argv.data());
    ::_exit(127);
  }
}

void EtcdCluster::kill(int member) {
  const pid_t pid = std::exchange(at(member).pid, -1);
  if (pid <= 0) return;
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

void EtcdCluster::wipe(int member) { std::filesystem::remove_all(folder_ + "/" + name(member)); }

void EtcdCluster::pause(int member) { ::kill(at(member).pid, SIGSTOP); }
void EtcdCluster::resume(int member) { ::kill(at(member).pid, SIGCONT); }

std::string EtcdCluster::call(int member, std::string_view path, std::string_view json,
                              std::string_view headers) {
  TestClient client(at(member).client_port);
  const TestAnswer answer = client.post(path, json, headers);
  return answer.body;
}

bool EtcdCluster::answers(int member) {
  if (options_.tls_cert.empty()) {
    return call(member, "/v3/kv/range", R"({"key":"AA=="})").find("revision") != std::string::npos;
  }
  // Over TLS it is enough that the port is open: the programs under test try again.
  TestClient client(at(member).client_port);
  return client.send("x");
}

bool EtcdCluster::wait_ready() {
  const auto end = std::chrono::steady_clock::now() + 3 * kPatience;
  for (int i = 0; i < members(); ++i) {
    while (at(i).pid > 0 && !answers(i)) {
      if (std::chrono::steady_clock::now() > end) return false;
      ::poll(nullptr, 0, 20);
    }
  }
  return true;
}

int EtcdCluster::leader() {
  for (int i = 0; i < members(); ++i) {
    if (at(i).pid <= 0) continue;
    const std::string status = call(i, "/v3/maintenance/status", "{}");
    const std::string own = field(status, "member_id");
    if (!own.empty() && own == field(status, "leader")) return i;
  }
  return -1;
}

}  // namespace kvl::test
