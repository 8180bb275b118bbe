// The worker's end of its rank processes.
#include "worker/process_host.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "worker/rank_process.h"
#include "worker/rank_wire.h"

namespace kvl::worker {
namespace {

constexpr int kEndMs = 5000;  // for a rank process to end by itself

void wait_for(pid_t pid) {
  for (int waited_ms = 0; waited_ms < kEndMs; waited_ms += 10) {
    const pid_t ended = ::waitpid(pid, nullptr, WNOHANG);
    if (ended == pid || (ended < 0 && errno != EINTR)) return;
    ::poll(nullptr, 0, 10);
  }
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

}  // namespace

Result<std::unique_ptr<ProcessHost>> ProcessHost::start(const ParallelSizes& sizes,
                                                        const OpenRank& open_rank) {
  std::unique_ptr<ProcessHost> host(new ProcessHost(sizes));
  for (std::uint32_t rank = 0; rank < sizes.tp_size * sizes.pp_size; ++rank) {
    std::array<int, 2> ends{-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
      return Status(Code::exhausted, "socket of a rank process", errno);
    }
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid < 0) {
      const int os_error = errno;
      ::close(ends[0]);
      ::close(ends[1]);
      return Status(Code::exhausted, "fork of a rank process", os_error);
    }
    if (pid == 0) {
      // The ends of its elders: held open here, their death would go unnoticed.
      for (const std::unique_ptr<Rank>& elder : host->ranks_) ::close(elder->fd);
      ::close(ends[0]);
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(1);
      ::_exit(run_rank_process(ends[1], rank, sizes.tp_size, open_rank));
    }
    ::close(ends[1]);
    ::fcntl(ends[0], F_SETFL, O_NONBLOCK);
    host->ranks_.push_back(std::make_unique<Rank>());
    host->ranks_.back()->fd = ends[0];
    host->pids_.push_back(pid);
  }
  host->wake_fd_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (host->wake_fd_ < 0) return Status(Code::exhausted, "eventfd", errno);
  return host;
}

ProcessHost::~ProcessHost() {
  closing_ = true;
  if (thread_.joinable()) {
    wake();
    thread_.join();
  }
  for (const std::unique_ptr<Rank>& rank : ranks_) ::close(rank->fd);
  for (const pid_t pid : pids_) wait_for(pid);
  if (wake_fd_ >= 0) ::close(wake_fd_);
}

void ProcessHost::run(RankEventSink sink) {
  sink_ = std::move(sink);
  thread_ = std::thread([this] { loop(); });
}

void ProcessHost::post(const Command& command) {
  const std::vector<std::byte> bytes = frame(Channel::command, encode(command));
  for (std::uint32_t rank = 0; rank < ranks_.size(); ++rank) push(rank, bytes);
  wake();
}

void ProcessHost::push(std::uint32_t rank, std::vector<std::byte> bytes) {
  const std::lock_guard lock(ranks_[rank]->mutex);
  if (!ranks_[rank]->lost) ranks_[rank]->unsent.push_back(std::move(bytes));
}

void ProcessHost::wake() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_fd_, &one, sizeof(one));
}

void ProcessHost::loop() {
  while (!closing_) {
    std::vector<pollfd> fds{{wake_fd_, POLLIN, 0}};
    for (const std::unique_ptr<Rank>& rank : ranks_) {
      const std::lock_guard lock(rank->mutex);
      const int events = rank->lost ? 0 : rank->unsent.empty() ? POLLIN : POLLIN | POLLOUT;
      fds.push_back({rank->lost ? -1 : rank->fd, static_cast<short>(events), 0});
    }
    ::poll(fds.data(), fds.size(), -1);
    std::uint64_t count = 0;
    if (fds[0].revents != 0) {
      [[maybe_unused]] const ssize_t taken = ::read(wake_fd_, &count, sizeof(count));
    }
    for (std::uint32_t i = 0; i < ranks_.size(); ++i) {
      if (fds[i + 1].revents == 0) continue;
      flush(*ranks_[i]);
      const bool alive = ranks_[i]->reader.read(
          ranks_[i]->fd,
          [&](Channel channel, std::span<const std::byte> body) { take(i, channel, body); });
      if (!alive) lose(i);
    }
  }
}

void ProcessHost::flush(Rank& rank) {
  const std::lock_guard lock(rank.mutex);
  while (!rank.unsent.empty()) {
    const std::vector<std::byte>& first = rank.unsent.front();
    const ssize_t sent = ::send(rank.fd, first.data() + rank.sent, first.size() - rank.sent,
                                MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) return;  // later, or read() will say that it is gone
    rank.sent += static_cast<std::size_t>(sent);
    if (rank.sent < first.size()) return;
    rank.unsent.pop_front();
    rank.sent = 0;
  }
}

void ProcessHost::take(std::uint32_t rank, Channel channel, std::span<const std::byte> body) {
  if (channel == Channel::event) {
    if (std::optional<RankEvent> event = decode_event(body)) sink_(*std::move(event));
  } else if (channel == Channel::gather) {
    ranks_[rank]->parts.emplace_back(body.begin(), body.end());
    gather(rank / sizes_.tp_size);
  } else if (channel == Channel::hidden) {
    const std::uint32_t next = rank + sizes_.tp_size;
    if (next < ranks_.size()) push(next, frame(Channel::hidden, body));
  }
}

// Once every rank of the stage has given its part, each gets all of them.
void ProcessHost::gather(std::uint32_t stage) {
  const std::uint32_t first = stage * sizes_.tp_size;
  std::vector<std::byte> all;
  for (std::uint32_t r = first; r < first + sizes_.tp_size; ++r) {
    if (ranks_[r]->parts.empty()) return;
  }
  for (std::uint32_t r = first; r < first + sizes_.tp_size; ++r) {
    all.insert(all.end(), ranks_[r]->parts.front().begin(), ranks_[r]->parts.front().end());
    ranks_[r]->parts.pop_front();
  }
  const std::vector<std::byte> bytes = frame(Channel::gathered, all);
  for (std::uint32_t r = first; r < first + sizes_.tp_size; ++r) {
    push(r, bytes);
    flush(*ranks_[r]);
  }
}

void ProcessHost::lose(std::uint32_t rank) {
  {
    const std::lock_guard lock(ranks_[rank]->mutex);
    ranks_[rank]->lost = true;
    ranks_[rank]->unsent.clear();
  }
  sink_(RankLost{rank});
}

void ProcessHost::visit_metrics(MetricVisitor& visitor) const {
  visitor.gauge("kvlane_worker_rank_processes", "Rank processes started", {},
                static_cast<double>(pids_.size()));
}

}  // namespace kvl::worker
