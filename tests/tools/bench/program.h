// Runs the program kvlane as its users do and keeps what it prints.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "transport/base/unique_fd.h"

namespace kvl::test {

// A running program; killed when it goes out of scope. `arguments` are split at blanks.
class Program {
 public:
  explicit Program(const std::string& arguments, const std::vector<std::string>& before = {}) {
    std::array<int, 2> out{}, err{};
    if (::pipe2(out.data(), O_CLOEXEC) != 0 || ::pipe2(err.data(), O_CLOEXEC) != 0) std::abort();
    std::vector<std::string> words = before;
    words.emplace_back(KVL_PROGRAM);
    std::istringstream split(arguments);
    words.insert(words.end(), std::istream_iterator<std::string>(split), {});
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::dup2(out[1], STDOUT_FILENO);
      ::dup2(err[1], STDERR_FILENO);
      ::execvp(argv[0], argv.data());
      ::_exit(127);
    }
    ::close(out[1]);
    ::close(err[1]);
    out_.reset(out[0]);
    err_.reset(err[0]);
  }
  ~Program() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int number) const { ::kill(pid_, number); }

  // The next line of its standard output; "" when it ends or after `timeout_s`.
  std::string read_line(int timeout_s = 60) {
    while (output.find('\n', line_at_) == std::string::npos) {
      if (!take(timeout_s)) return {};
    }
    const std::size_t end = output.find('\n', line_at_);
    std::string line = output.substr(line_at_, end - line_at_);
    line_at_ = end + 1;
    return line;
  }

  // Exit status; 128 + signal; -1 when it was still running after `timeout_s` (then killed).
  int wait(int timeout_s = 60) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(timeout_s);
    while ((out_ || err_) && std::chrono::steady_clock::now() < deadline) take(1);
    const bool late = out_ || err_;
    if (late) ::kill(pid_, SIGKILL);
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    if (late) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  std::string output, errors;

 private:
  bool take(int timeout_s) {
    std::array<pollfd, 2> fds{{{out_.get(), POLLIN, 0}, {err_.get(), POLLIN, 0}}};
    if (::poll(fds.data(), fds.size(), timeout_s * 1000) <= 0) return false;
    drain(fds[0], out_, output);
    drain(fds[1], err_, errors);
    return static_cast<bool>(out_);
  }
  static void drain(const pollfd& ready, UniqueFd& fd, std::string& text) {
    if (ready.revents == 0 || !fd) return;
    std::array<char, 4096> bytes;
    const ssize_t got = ::read(fd.get(), bytes.data(), bytes.size());
    if (got <= 0) {
      fd.reset();
    } else {
      text.append(bytes.data(), static_cast<std::size_t>(got));
    }
  }
  pid_t pid_ = -1;
  UniqueFd out_, err_;
  std::size_t line_at_ = 0;
};

// The text behind "key": in one line of JSON, up to the next comma or brace; "" when there is none.
inline std::string json_field(const std::string& line, const std::string& key) {
  const std::string head = "\"" + key + "\": ";
  const std::size_t begin = line.find(head);
  if (begin == std::string::npos) return {};
  const std::size_t from = begin + head.size();
  if (line[from] == '"') return line.substr(from + 1, line.find('"', from + 1) - from - 1);
  return line.substr(from, line.find_first_of(",}", from) - from);
}
inline double json_number(const std::string& line, const std::string& key) {
  return std::atof(json_field(line, key).c_str());
}

}  // namespace kvl::test
