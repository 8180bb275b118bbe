// The raw-socket baseline: what two processes reach over TCP when they know everything beforehand.
//
// No headers, no checks, no registration: both sides are told the order of the pages once, then
// sendmsg() and readv() move up to 1,024 vectors a call, and each batch is answered by eight bytes.
// A transport over TCP that reaches 0.9 of this has spent its time well. Connections, threads,
// congestion control, buffers and page order are the same as those of the transport it is compared
// with.
//
//   process B:  auto server = RawSocketServer::open(options, memory);  … tell A server->port() …
//               server->serve();                       // until the client goes away
//   process A:  auto client = RawSocketClient::open(options, memory, "127.0.0.1", port);
//               client->configure({Direction::write, page_bytes, pages_here, pages_there});
//               client->run(batches, inflight);        // as often as wanted: A B A B with ours
//
// One session is one thread on each side and `connections / threads` connections. With two threads
// each one moves its half of every batch. All calls block; a silent peer ends them after
// `timeout_ms`. Memory is the caller's and outlives both objects.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvl/status.h"
#include "kvl/transport.h"

namespace kvl::bench {

struct RawSocketOptions {
  int connections = 2;
  int threads = 1;            // divides connections
  std::string congestion;     // TCP_CONGESTION; "" the system's
  int send_buffer_bytes = 0;  // SO_SNDBUF; 0 the kernel tunes it
  int recv_buffer_bytes = 0;  // SO_RCVBUF
  bool spin = false;          // retry instead of sleeping in poll(): as a caller-polled Link
  int timeout_ms = 10'000;
};

// One shape of batch. Page p of a side is bytes [p * page_bytes, (p + 1) * page_bytes) of the
// memory that side was opened with. Page i of the batch moves between client_pages[i] and
// server_pages[i].
struct RawPlan {
  Direction direction = Direction::write;  // write: client to server
  std::uint32_t page_bytes = 4096;
  std::vector<std::uint32_t> client_pages;
  std::vector<std::uint32_t> server_pages;
};

struct RawRun {
  double seconds = 0;
  std::uint64_t bytes = 0;
  double client_cpu_seconds = 0;  // of the calling process, user and system
  double server_cpu_seconds = 0;  // of the server's process
  // From the first byte of a batch to its answer, in order of completion (the first session's).
  std::vector<double> batch_us;
};

class RawSocketSession;

class RawSocketServer {
 public:
  // Listens on `address` (numeric, IPv4 or IPv6), port 0.
  static Result<std::unique_ptr<RawSocketServer>> open(const RawSocketOptions&,
                                                       std::span<std::byte> memory,
                                                       const std::string& address = "127.0.0.1");
  ~RawSocketServer();
  std::uint16_t port() const { return port_; }
  // Accepts one client and serves it until it closes. ok: it closed between two commands.
  Status serve();

 private:
  RawSocketServer(const RawSocketOptions& options, std::span<std::byte> memory)
      : options_(options), memory_(memory) {}
  RawSocketOptions options_;
  std::span<std::byte> memory_;
  int listener_ = -1;
  std::uint16_t port_ = 0;
};

// The congestion control that a connection with these options gets, to a process of this host or
// another. unsupported: the kernel has none of that name, or this user may not choose it.
Result<std::string> congestion_in_force(const RawSocketOptions& options, bool same_host);

class RawSocketClient {
 public:
  static Result<std::unique_ptr<RawSocketClient>> open(const RawSocketOptions&,
                                                       std::span<std::byte> memory,
                                                       const std::string& address,
                                                       std::uint16_t port);
  ~RawSocketClient();
  // Both sides adopt the plan. invalid_argument: pages outside of either memory, unequal lists.
  Status configure(const RawPlan&);
  // Moves `batches` batches of the plan, at most `inflight` of them unanswered.
  Result<RawRun> run(std::uint64_t batches, std::uint32_t inflight = 1);
  // `rounds` times: `bytes` bytes there, `answer_bytes` bytes back, over the first connection.
  // batch_us holds one round each.
  Result<RawRun> ping_pong(std::uint64_t rounds, std::uint32_t bytes, std::uint32_t answer_bytes);
  // The congestion control that is really in force.
  std::string congestion() const;

 private:
  RawSocketClient(const RawSocketOptions& options, std::span<std::byte> memory);
  RawSocketOptions options_;
  std::span<std::byte> memory_;
  std::vector<std::unique_ptr<RawSocketSession>> sessions_;
};

}  // namespace kvl::bench
