// An etcd cluster of a test's own: members as child processes on free ports of loopback, data in a
// folder that goes with it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvl::test {

struct EtcdOptions {
  int members = 1;
  // Paths of PEM files; clients must then speak TLS and show a certificate of `tls_ca`.
  std::string tls_cert, tls_key, tls_ca;
};

class EtcdCluster {
 public:
  // Started and with a leader, or a test failure.
  explicit EtcdCluster(EtcdOptions options = {});
  ~EtcdCluster();  // kills, removes
  EtcdCluster(const EtcdCluster&) = delete;
  EtcdCluster& operator=(const EtcdCluster&) = delete;

  static bool installed();

  int members() const { return static_cast<int>(members_.size()); }
  std::string url(int member) const;
  std::string urls() const;  // of all, separated by commas
  void kill(int member);     // -9
  void start(int member);    // with the data that it has
  void wipe(int member);     // a killed member forgets everything
  void pause(int member);    // SIGSTOP
  void resume(int member);
  // Every running member answers linearizable reads, within the tests' patience.
  bool wait_ready();
  int leader();  // -1: none is known

  // POST of JSON straight to a member; the answer's body, "" when there is none. Plain HTTP only.
  std::string call(int member, std::string_view path, std::string_view json,
                   std::string_view headers = {});
  const std::string& folder() const { return folder_; }

 private:
  struct Member {
    std::uint16_t client_port = 0, peer_port = 0;
    pid_t pid = -1;
  };
  std::string name(int member) const { return "m" + std::to_string(member); }
  Member& at(int member) { return members_[static_cast<std::size_t>(member)]; }
  const Member& at(int member) const { return members_[static_cast<std::size_t>(member)]; }
  bool answers(int member);

  EtcdOptions options_;
  std::string folder_;
  std::vector<Member> members_;
};

}  // namespace kvl::test
