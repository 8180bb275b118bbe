// A stub HTTP server and a closed-loop load client, as cheap as they can be: what is measured lies
// between them. Loopback only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvl::bench {

// Answers every request on every port with the same short JSON. One thread, epoll.
class StubServer {
 public:
  explicit StubServer(std::size_t ports);
  const std::vector<std::uint16_t>& ports() const { return ports_; }
  [[noreturn]] void run();

 private:
  int epoll_;
  std::vector<int> listeners_;
  std::vector<std::uint16_t> ports_;
};

struct LoadOptions {
  std::uint16_t port = 0;
  std::string path, body;
  std::size_t connections = 16;
  double seconds = 2;
};

struct LoadResult {
  std::uint64_t requests = 0;  // answered 200
  std::uint64_t failed = 0;    // anything else, or a connection that broke
  double seconds = 0;
  std::vector<double> latency_us;
};

// Each connection sends its next request when it has its answer.
LoadResult run_load(const LoadOptions& options);

// A port that was free a moment ago, for servers that cannot take 0.
std::uint16_t free_port();

}  // namespace kvl::bench
