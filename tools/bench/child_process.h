// A process of ours that cannot outlive us and whose end is noticed.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvl/status.h"
#include "transport/base/unique_fd.h"

namespace kvl::bench {

// Ctrl-C and SIGTERM set a flag that every wait of the benchmark looks at.
void catch_interrupts();
bool interrupted();

class ChildProcess {
 public:
  // Starts this program again with `arguments` (without argv[0]). Its standard output is ours to
  // read, standard error is shared. It dies with the thread that calls this.
  static Result<std::unique_ptr<ChildProcess>> start(const std::vector<std::string>& arguments);
  // Asks it to end (SIGTERM), waits up to two seconds, then kills it.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The next line that it prints. timed_out, aborted (Ctrl-C), peer_lost (it ended).
  Result<std::string> read_line(std::int64_t timeout_ms);
  // Reaps it when it has ended. how_ended(): "exit status 1", "signal 9"; "" while it runs.
  bool running();
  const std::string& how_ended() const { return how_ended_; }
  pid_t pid() const { return pid_; }

 private:
  ChildProcess(pid_t pid, UniqueFd output) : pid_(pid), output_(std::move(output)) {}
  pid_t pid_;
  UniqueFd output_;
  std::string buffered_;
  std::string how_ended_;
};

}  // namespace kvl::bench
