// The same test body as two threads or as two processes: starts the other one and gives each end of
// a socket.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <utility>

#include "transport/base/unique_fd.h"

namespace kvl::test {

// The body gets one end of a stream socket and returns when that end is closed by the other side;
// its result (0: fine) and failed expectations of a child process fail the test. Start it while the
// caller has a single thread: processes are made by fork().
class PeerGroup {
 public:
  enum class Mode { threads, processes };
  using Body = std::function<int(UniqueFd socket)>;

  PeerGroup(Mode mode, Body body) : mode_(mode) {
    int ends[2] = {-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
    socket_.reset(ends[0]);
    UniqueFd theirs(ends[1]);
    if (mode == Mode::threads) {
      thread_ = std::thread(
          [this, body = std::move(body), fd = theirs.release()] { result_ = body(UniqueFd(fd)); });
      return;
    }
    std::fflush(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) std::abort();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      socket_.reset();
      int result = body(std::move(theirs));
      if (::testing::Test::HasFailure()) result = 1;
      std::fflush(nullptr);
      ::_exit(result);
    }
  }
  ~PeerGroup() {
    if (joined_) return;
    EXPECT_EQ(join(), 0) << "the peer failed";
  }
  PeerGroup(const PeerGroup&) = delete;
  PeerGroup& operator=(const PeerGroup&) = delete;

  int socket() const { return socket_.get(); }
  pid_t pid() const { return pid_; }  // processes only

  // kill -9, and gone on return. Processes only.
  void kill() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    joined_ = true;
  }
  // Closes our end and waits for the body; a process that does not end within 10 s is killed.
  int join() {
    socket_.reset();
    joined_ = true;
    if (mode_ == Mode::threads) {
      thread_.join();
      return result_;
    }
    UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    pollfd ended{pidfd.get(), POLLIN, 0};
    if (::poll(&ended, 1, 10'000) != 1) {
      ADD_FAILURE() << "the peer process does not end";
      ::kill(pid_, SIGKILL);
    }
    int status = 0;
    ::waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  const Mode mode_;
  UniqueFd socket_;
  std::thread thread_;
  int result_ = 0;
  pid_t pid_ = -1;
  bool joined_ = false;
};

}  // namespace kvl::test
