// One thread's share of the raw-socket baseline: a few connections, one plan, one loop.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "bench/support/raw_socket.h"
#include "kvl/status.h"

namespace kvl::bench {

double process_cpu_seconds();
void make_nonblocking(int fd);
// Whole messages on a non-blocking socket. timed_out; peer_lost.
Status send_all(int fd, const void* data, std::size_t bytes, int timeout_ms);
Status receive_all(int fd, void* data, std::size_t bytes, int timeout_ms);

// The vectors of one connection for one batch, and how far it is.
struct RawStream {
  int fd = -1;
  std::vector<iovec> pages;   // whole pages, in order
  std::size_t next = 0;       // first page that is not complete
  iovec partial{};            // what is left of it
  std::uint64_t batches = 0;  // complete
};

class RawSocketSession {
 public:
  // Takes over the descriptors.
  RawSocketSession(const std::vector<int>& fds, std::span<std::byte> memory,
                   const RawSocketOptions& options);
  ~RawSocketSession();
  RawSocketSession(const RawSocketSession&) = delete;
  RawSocketSession& operator=(const RawSocketSession&) = delete;

  void adopt(int fd) { streams_.emplace_back().fd = fd; }
  int first_fd() const { return streams_[0].fd; }

  // Client.
  Status configure(const RawPlan& plan);
  Result<RawRun> run(std::uint64_t batches, std::uint32_t inflight);
  Result<RawRun> ping_pong(std::uint64_t rounds, std::uint32_t bytes, std::uint32_t answer_bytes);
  // Server: obeys commands until the client closes.
  Status serve();

 private:
  struct Command;
  struct Flow;
  Status adopt_plan(Direction direction, std::uint32_t page_bytes,
                    std::span<const std::uint32_t> pages);
  // Moves every batch in one direction. `times` (client): when batches began, then how long.
  Status move(Flow& flow, std::vector<double>* times);
  Status wait(const Flow& flow);
  Result<bool> advance(RawStream& stream, bool sending);
  Status receive_spinning(std::size_t bytes);
  Status ask(Command& command, std::span<const std::uint32_t> pages);

  std::vector<RawStream> streams_;
  std::span<std::byte> memory_;
  RawSocketOptions options_;
  Direction direction_ = Direction::write;
  std::uint64_t batch_bytes_ = 0;
};

}  // namespace kvl::bench
