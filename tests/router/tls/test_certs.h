// Authorities, certificates and keys for tests, made by openssl in a folder that goes with them.
#pragma once

#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace kvl::test {

class TestCerts {
 public:
  TestCerts() {
    char folder[] = "/tmp/kvlane_certs.XXXXXX";
    if (::mkdtemp(folder) == nullptr) std::abort();
    folder_ = folder;
    authority("ca");
    issue("server", "ca", 2);
    issue("client", "ca", 2);
  }
  ~TestCerts() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  TestCerts(const TestCerts&) = delete;
  TestCerts& operator=(const TestCerts&) = delete;

  std::string cert(const std::string& name) const { return folder_ + "/" + name + ".pem"; }
  std::string key(const std::string& name) const { return folder_ + "/" + name + ".key"; }
  std::string ca() const { return cert("ca"); }

  void authority(const std::string& name) const {
    run("openssl req -x509 " + kNewKey + " -keyout " + key(name) + " -out " + cert(name) +
        " -days 2 -subj /CN=" + name);
  }
  // Valid for 127.0.0.1 and localhost; `days` may be negative: it has expired.
  void issue(const std::string& name, const std::string& authority, int days) const {
    const std::string request = folder_ + "/" + name + ".csr", more = folder_ + "/san";
    std::ofstream(more) << "subjectAltName=IP:127.0.0.1,DNS:localhost\n";
    run("openssl req " + kNewKey + " -keyout " + key(name) + " -out " + request +
        " -subj /CN=" + name);
    run("openssl x509 -req -in " + request + " -CA " + cert(authority) + " -CAkey " +
        key(authority) + " -CAcreateserial -days " + std::to_string(days) + " -extfile " + more +
        " -out " + cert(name));
  }

 private:
  static void run(const std::string& command) {
    if (std::system((command + " >/dev/null 2>&1").c_str()) != 0) std::abort();
  }
  static inline const std::string kNewKey =
      "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
  std::string folder_;
};

}  // namespace kvl::test
