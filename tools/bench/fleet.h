// Many peers at once: the serving side as many engines in one process, the asking side as one
// engine with many sessions.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "tools/bench/arena.h"
#include "tools/bench/row.h"

namespace kvl::bench {

// Raises the limit of open files as far as this user may. Returns what is allowed now.
std::uint64_t raise_file_limit();

// `count` targets in this process, their addresses one a line on standard output. Until Ctrl-C.
// The engines have threads of their own: one that its caller drives wants to be asked each time.
int serve_fleet(const Settings& settings, std::size_t count);

// One engine connected to every target of a fleet.
class Fleet {
 public:
  // Starts the serving process and connects. `error` says why not.
  static Result<std::unique_ptr<Fleet>> open(const Bench& bench, const Flags& flags,
                                             std::size_t peers, std::string* error);
  ~Fleet();
  double connect_ms() const { return connect_ms_; }  // all of them, from the first connect()
  // Of this process, idle peers: resident memory and CPU time of both processes.
  double rss_bytes_per_peer() const { return rss_bytes_per_peer_; }
  double idle_cpu_percent() const { return idle_cpu_percent_; }
  // Writes `pages` pages of 4 KiB to a peer, each time another one; microseconds each.
  Status transfers(double seconds, std::vector<double>& microseconds);

  static constexpr std::uint64_t kPages = 16;

 private:
  struct Peer {
    PeerHandle handle;
    std::array<MemoryHandle, 1> memory;
    bool up = false, ready = false;
  };
  explicit Fleet(std::int64_t timeout_ms) : timeout_ms_(timeout_ms) {}
  Status connect(std::string* error);
  Status open_memory(std::string* error);
  Status measure_idle();
  // Takes events until `done` or the deadline.
  template <typename Done>
  Status pump(Done done, const char* what);

  const std::int64_t timeout_ms_;
  std::unique_ptr<ChildProcess> child_;
  std::vector<std::string> addresses_;
  std::unique_ptr<Workload> workload_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Engine> engine_;  // before the arena in destruction
  std::array<MemoryHandle, 1> local_;
  std::vector<Peer> peers_;
  std::unordered_map<std::uint64_t, std::size_t> by_handle_;
  std::size_t up_ = 0, ready_ = 0, ended_ = 0;
  Status failed_;
  double connect_ms_ = 0, rss_bytes_per_peer_ = 0, idle_cpu_percent_ = 0;
  std::array<EngineEvent, 64> events_;
};

}  // namespace kvl::bench
