// The loop of the raw-socket baseline: sendmsg and readv of up to 1,024 vectors, one answer a
// batch.
#include "bench/support/raw_socket_session.h"

#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace kvl::bench {
namespace {

constexpr std::uint32_t kCommandMagic = 0x4d4f434b;
constexpr std::size_t kVectorsMax = 1024;  // UIO_MAXIOV
constexpr std::uint64_t kPagesMax = 1u << 24;

double now_seconds() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

}  // namespace

// What the client asks over the first connection; the same bytes come back as the answer.
struct RawSocketSession::Command {
  enum class Kind : std::uint32_t { configure = 1, run = 2, ping_pong = 3, done = 4 };
  std::uint32_t magic = kCommandMagic;
  Kind kind = Kind::configure;
  std::uint32_t direction = 0, page_bytes = 0;
  std::uint64_t count = 0;     // pages, batches, rounds
  std::uint64_t inflight = 0;  // ping_pong: bytes of the answer
  double cpu_seconds = 0;      // answer
  std::uint64_t refused = 0;   // answer
};

// One run in one direction. Counts travel against the data as eight-byte marks on the first
// connection: answers of a write, requests of a read.
struct RawSocketSession::Flow {
  bool sending = false;
  std::uint64_t batches = 0;
  std::uint64_t credit = 0;      // sender: batches that may start before the first mark;
                                 // receiver: marks sent ahead of completion
  std::uint64_t marks = 0;       // sender: marks received; receiver: marks sent
  std::uint64_t mark_bytes = 0;  // of a mark that is not complete
  std::uint64_t complete = 0;    // batches that every connection has finished
  std::uint64_t limit() const { return std::min(batches, marks + credit); }
};

RawSocketSession::RawSocketSession(const std::vector<int>& fds, std::span<std::byte> memory,
                                   const RawSocketOptions& options)
    : memory_(memory), options_(options) {
  for (const int fd : fds) adopt(fd);
}

RawSocketSession::~RawSocketSession() {
  for (const RawStream& stream : streams_) ::close(stream.fd);
}

Status RawSocketSession::adopt_plan(Direction direction, std::uint32_t page_bytes,
                                    std::span<const std::uint32_t> pages) {
  direction_ = direction;
  batch_bytes_ = std::uint64_t{page_bytes} * pages.size();
  for (const std::uint32_t page : pages) {
    if ((std::uint64_t{page} + 1) * page_bytes > memory_.size()) {
      return {Code::invalid_argument, "raw baseline: page outside of the memory"};
    }
  }
  for (std::size_t i = 0; i < streams_.size(); ++i) {
    RawStream& stream = streams_[i];
    stream.pages.clear();
    stream.next = 0;
    const std::size_t end = pages.size() * (i + 1) / streams_.size();
    for (std::size_t p = pages.size() * i / streams_.size(); p < end; ++p) {
      stream.pages.push_back({memory_.data() + std::uint64_t{pages[p]} * page_bytes, page_bytes});
    }
  }
  return {};
}

// One call of sendmsg or readv. False: it would block.
Result<bool> RawSocketSession::advance(RawStream& stream, bool sending) {
  iovec& first = stream.pages[stream.next];
  const iovec whole = first;
  if (stream.partial.iov_len > 0) first = stream.partial;
  const std::size_t vectors = std::min(stream.pages.size() - stream.next, kVectorsMax);
  msghdr message{};
  message.msg_iov = &first;
  message.msg_iovlen = vectors;
  const ssize_t n = sending ? ::sendmsg(stream.fd, &message, MSG_NOSIGNAL)
                            : ::readv(stream.fd, &first, static_cast<int>(vectors));
  const int error = errno;
  const iovec tried = first;
  first = whole;
  if (n <= 0) {
    if (n < 0 && (error == EAGAIN || error == EINTR)) return false;
    return Status{Code::peer_lost, "raw baseline: data connection", n < 0 ? error : 0};
  }
  auto left = static_cast<std::size_t>(n);
  iovec at = tried;
  while (left >= at.iov_len) {
    left -= at.iov_len;
    at = {};
    if (++stream.next == stream.pages.size() || left == 0) break;
    at = stream.pages[stream.next];
  }
  stream.partial = at;
  if (left > 0) {
    stream.partial = {static_cast<char*>(at.iov_base) + left, at.iov_len - left};
  }
  if (stream.next == stream.pages.size()) {
    stream.next = 0;
    stream.partial = {};
    ++stream.batches;
  }
  return true;
}

Status RawSocketSession::wait(const Flow& flow) {
  if (options_.spin) return {};
  std::array<pollfd, 256> waits{};
  std::size_t count = 0;
  for (const RawStream& stream : streams_) {
    short events = 0;
    if (!flow.sending) {
      if (stream.batches < flow.batches) events = POLLIN;
    } else if (stream.batches < flow.limit()) {
      events = POLLOUT;
    }
    if (flow.sending && count == 0 && flow.marks < flow.batches) {
      events = static_cast<short>(events | POLLIN);
    }
    waits[count++] = {stream.fd, events, 0};
  }
  if (::poll(waits.data(), count, options_.timeout_ms) == 0) {
    return {Code::timed_out, "raw baseline: silent peer"};
  }
  return {};
}

Status RawSocketSession::move(Flow& flow, std::vector<double>* times) {
  for (RawStream& stream : streams_) stream.batches = 0;
  std::uint64_t started = 0;  // whose time has been taken
  std::uint64_t ended = 0;
  const auto begin_times = [&](std::uint64_t until) {
    if (times == nullptr || started >= until) return;
    for (const double now = now_seconds(); started < until; ++started) times->push_back(now);
  };
  const auto end_times = [&](std::uint64_t until) {
    if (times == nullptr || ended >= until) return;
    for (const double now = now_seconds(); ended < until; ++ended) {
      (*times)[ended] = (now - (*times)[ended]) * 1e6;
    }
  };
  while (flow.complete < flow.batches || flow.marks < flow.batches) {
    bool progress = false;
    if (!flow.sending) {
      const std::uint64_t due = std::min(flow.batches, flow.complete + flow.credit);
      if (due > flow.marks) {
        static constexpr std::array<std::uint64_t, 64> kMarks{};
        const std::uint64_t count = std::min<std::uint64_t>(due - flow.marks, kMarks.size());
        if (direction_ == Direction::read) begin_times(flow.marks + count);
        KVL_TRY(send_all(first_fd(), kMarks.data(), count * 8, options_.timeout_ms));
        flow.marks += count;
        progress = true;
      }
    }
    const std::uint64_t limit = flow.sending ? flow.limit() : flow.batches;
    if (flow.sending && direction_ == Direction::write) begin_times(limit);
    std::uint64_t complete = UINT64_MAX;
    for (RawStream& stream : streams_) {
      if (stream.batches < limit) {
        auto moved = advance(stream, flow.sending);
        if (!moved) return moved.status();
        progress |= *moved;
      }
      complete = std::min(complete, stream.batches);
    }
    flow.complete = complete;
    if (direction_ == Direction::read && !flow.sending) end_times(complete);
    if (flow.sending && !progress && flow.marks < flow.batches) {
      std::array<std::uint64_t, 64> marks{};
      // Never past the last mark: what follows belongs to the next command.
      const std::uint64_t due = (flow.batches - flow.marks) * 8 - flow.mark_bytes;
      const ssize_t n =
          ::recv(first_fd(), marks.data(), std::min<std::uint64_t>(due, sizeof(marks)), 0);
      if (n == 0) return {Code::peer_lost, "raw baseline: closed"};
      if (n > 0) {
        flow.mark_bytes += static_cast<std::uint64_t>(n);
        flow.marks += flow.mark_bytes / 8;
        flow.mark_bytes %= 8;
        if (direction_ == Direction::write) end_times(flow.marks);
        progress = true;
      }
    }
    if (!progress) KVL_TRY(wait(flow));
  }
  return {};
}

Status RawSocketSession::ask(Command& command, std::span<const std::uint32_t> pages) {
  KVL_TRY(send_all(first_fd(), &command, sizeof(command), options_.timeout_ms));
  if (command.kind != Command::Kind::configure) return {};
  KVL_TRY(send_all(first_fd(), pages.data(), pages.size_bytes(), options_.timeout_ms));
  Command answer;
  KVL_TRY(receive_all(first_fd(), &answer, sizeof(answer), options_.timeout_ms));
  if (answer.refused != 0) return {Code::invalid_argument, "raw baseline: refused by the server"};
  return {};
}

Status RawSocketSession::configure(const RawPlan& plan) {
  KVL_TRY(adopt_plan(plan.direction, plan.page_bytes, plan.client_pages));
  Command command;
  command.direction = static_cast<std::uint32_t>(plan.direction);
  command.page_bytes = plan.page_bytes;
  command.count = plan.server_pages.size();
  return ask(command, plan.server_pages);
}

Result<RawRun> RawSocketSession::run(std::uint64_t batches, std::uint32_t inflight) {
  if (batch_bytes_ == 0) return Status{Code::invalid_argument, "raw baseline: no plan"};
  RawRun result;
  result.batch_us.reserve(batches);
  Command command;
  command.kind = Command::Kind::run;
  command.count = batches;
  command.inflight = inflight;
  KVL_TRY(ask(command, {}));
  Flow flow;
  flow.sending = direction_ == Direction::write;
  flow.batches = batches;
  flow.credit = inflight;
  const double begin = now_seconds();
  KVL_TRY(move(flow, &result.batch_us));
  result.seconds = now_seconds() - begin;
  result.bytes = batches * batch_bytes_;
  KVL_TRY(receive_all(first_fd(), &command, sizeof(command), options_.timeout_ms));
  result.server_cpu_seconds = command.cpu_seconds;
  return result;
}

Result<RawRun> RawSocketSession::ping_pong(std::uint64_t rounds, std::uint32_t bytes,
                                           std::uint32_t answer_bytes) {
  if (bytes == 0 || answer_bytes == 0 || std::max(bytes, answer_bytes) > memory_.size()) {
    return Status{Code::invalid_argument, "raw baseline: ping of that size"};
  }
  RawRun result;
  result.batch_us.reserve(rounds);
  const double cpu = process_cpu_seconds();
  Command command;
  command.kind = Command::Kind::ping_pong;
  command.count = rounds;
  command.page_bytes = bytes;
  command.inflight = answer_bytes;
  KVL_TRY(ask(command, {}));
  const double begin = now_seconds();
  const int sleep_ms = options_.timeout_ms;
  const auto receive = [&]() -> Status {
    return options_.spin ? receive_spinning(answer_bytes)
                         : receive_all(first_fd(), memory_.data(), answer_bytes, sleep_ms);
  };
  for (std::uint64_t i = 0; i < rounds; ++i) {
    const double start = now_seconds();
    KVL_TRY(send_all(first_fd(), memory_.data(), bytes, sleep_ms));
    KVL_TRY(receive());
    result.batch_us.push_back((now_seconds() - start) * 1e6);
  }
  result.seconds = now_seconds() - begin;
  result.bytes = rounds * (std::uint64_t{bytes} + answer_bytes);
  result.client_cpu_seconds = process_cpu_seconds() - cpu;
  KVL_TRY(receive_all(first_fd(), &command, sizeof(command), sleep_ms));
  result.server_cpu_seconds = command.cpu_seconds;
  return result;
}

Status RawSocketSession::receive_spinning(std::size_t bytes) {
  const double deadline = now_seconds() + options_.timeout_ms * 1e-3;
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t n = ::recv(first_fd(), memory_.data() + done, bytes - done, 0);
    if (n > 0) {
      done += static_cast<std::size_t>(n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
      return {Code::peer_lost, "raw baseline: recv", n == 0 ? 0 : errno};
    } else if (now_seconds() > deadline) {
      return {Code::timed_out, "raw baseline: silent peer"};
    }
  }
  return {};
}

Status RawSocketSession::serve() {
  std::vector<std::uint32_t> pages;
  while (true) {
    Command command;
    // A client that has closed is the normal end; one that measures something else may be silent.
    if (Status status = receive_all(first_fd(), &command, sizeof(command), -1); !status.ok()) {
      return status.os_error() == 0 ? Status{} : status;
    }
    if (command.magic != kCommandMagic) return {Code::corrupt, "raw baseline: command"};
    const double cpu = process_cpu_seconds();
    Status status;
    if (command.kind == Command::Kind::configure) {
      if (command.count > kPagesMax) return {Code::corrupt, "raw baseline: page count"};
      pages.resize(command.count);
      KVL_TRY(receive_all(first_fd(), pages.data(), pages.size() * 4, options_.timeout_ms));
      status =
          adopt_plan(static_cast<Direction>(command.direction & 1U), command.page_bytes, pages);
    } else if (command.kind == Command::Kind::run) {
      Flow flow;
      flow.sending = direction_ == Direction::read;
      flow.batches = command.count;
      KVL_TRY(move(flow, nullptr));
    } else if (command.kind == Command::Kind::ping_pong && command.page_bytes <= memory_.size() &&
               command.inflight <= memory_.size()) {
      for (std::uint64_t i = 0; i < command.count; ++i) {
        KVL_TRY(options_.spin ? receive_spinning(command.page_bytes)
                              : receive_all(first_fd(), memory_.data(), command.page_bytes,
                                            options_.timeout_ms));
        KVL_TRY(send_all(first_fd(), memory_.data(), command.inflight, options_.timeout_ms));
      }
    } else {
      return {Code::corrupt, "raw baseline: command"};
    }
    command.kind = Command::Kind::done;
    command.refused = status.ok() ? 0 : 1;
    command.cpu_seconds = process_cpu_seconds() - cpu;
    KVL_TRY(send_all(first_fd(), &command, sizeof(command), options_.timeout_ms));
  }
}

}  // namespace kvl::bench
