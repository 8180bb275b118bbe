// fork and exec of this program, its output, its end.
#include "tools/bench/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <utility>

#include "kvl/clock.h"

namespace kvl::bench {
namespace {

// The one thing that a signal handler may touch.
std::atomic<bool> interrupt_seen{false};
static_assert(std::atomic<bool>::is_always_lock_free);

constexpr std::size_t kLineBytesMax = 4096;
constexpr std::int64_t kEndMs = 2000;

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupt_seen.store(true); };
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // a second Ctrl-C ends at once
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return interrupt_seen.load(); }

Result<std::unique_ptr<ChildProcess>> ChildProcess::start(
    const std::vector<std::string>& arguments) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return Status{Code::exhausted, "pipe to the child", errno};
  UniqueFd read_end(ends[0]), write_end(ends[1]);
  // Everything that allocates happens before the fork.
  std::vector<char*> argv{const_cast<char*>("kvlane")};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return Status{Code::exhausted, "fork", errno};
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);  // it died before the line above
    ::dup2(write_end.get(), STDOUT_FILENO);
    ::execv("/proc/self/exe", argv.data());
    ::_exit(127);
  }
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid, std::move(read_end)));
}

bool ChildProcess::running() {
  if (!how_ended_.empty()) return false;
  int status = 0;
  const pid_t ended = ::waitpid(pid_, &status, WNOHANG);
  if (ended == 0 || (ended < 0 && errno == EINTR)) return true;
  if (ended < 0) {
    how_ended_ = "unknown status";
  } else if (WIFSIGNALED(status)) {
    how_ended_ = "signal " + std::to_string(WTERMSIG(status));
  } else {
    how_ended_ = "exit status " + std::to_string(WEXITSTATUS(status));
  }
  return false;
}

Result<std::string> ChildProcess::read_line(std::int64_t timeout_ms) {
  const SteadyClock clock;
  const std::int64_t deadline_ns = clock.now_ns() + timeout_ms * 1'000'000;
  for (;;) {
    if (const std::size_t end = buffered_.find('\n'); end != std::string::npos) {
      std::string line = buffered_.substr(0, end);
      buffered_.erase(0, end + 1);
      return line;
    }
    if (interrupted()) return Status{Code::aborted, "interrupted"};
    if (clock.now_ns() >= deadline_ns) return Status{Code::timed_out, "no line from the child"};
    pollfd wait{output_.get(), POLLIN, 0};
    ::poll(&wait, 1, 20);
    if (wait.revents == 0) continue;
    char bytes[512];
    const ssize_t got = ::read(output_.get(), bytes, sizeof(bytes));
    if (got <= 0 || buffered_.size() > kLineBytesMax) {
      // Its end closes the pipe a moment before it can be reaped.
      for (int i = 0; i < 100 && running(); ++i) ::poll(nullptr, 0, 5);
      return Status{Code::peer_lost, "the child process ended"};
    }
    buffered_.append(bytes, static_cast<std::size_t>(got));
  }
}

ChildProcess::~ChildProcess() {
  if (!running()) return;
  ::kill(pid_, SIGTERM);
  const SteadyClock clock;
  const std::int64_t deadline_ns = clock.now_ns() + kEndMs * 1'000'000;
  while (running()) {
    if (clock.now_ns() >= deadline_ns) ::kill(pid_, SIGKILL);
    ::poll(nullptr, 0, 2);
  }
}

}  // namespace kvl::bench
