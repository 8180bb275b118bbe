// What the kernel of a host with one RDMA device shows, in a folder of its own.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "transport/verbs/verbs_device.h"

namespace kvl::test {

class FakeHost {
 public:
  explicit FakeHost(const std::string& device) {
    std::string pattern = (std::filesystem::temp_directory_path() / "kvl-rdma-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    folder_ = pattern;
    write("sysfs/" + device + "/ports/1/rate", "400 Gb/sec (4X NDR)\n");
    write("sysfs/" + device + "/device/numa_node", "1\n");
    write("nodes/uverbs0", "");
  }
  ~FakeHost() {
    std::error_code error;
    std::filesystem::remove_all(folder_, error);
  }
  FakeHost(const FakeHost&) = delete;
  FakeHost& operator=(const FakeHost&) = delete;

  verbs::Places places() const {
    return {(folder_ / "sysfs").string(), (folder_ / "nodes").string()};
  }
  void remove(const std::string& path) const { std::filesystem::remove_all(folder_ / path); }

 private:
  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories((folder_ / path).parent_path());
    std::ofstream(folder_ / path) << text;
  }
  std::filesystem::path folder_;
};

}  // namespace kvl::test
