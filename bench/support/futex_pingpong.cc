// Shared memory and two futex words: question and answer.
#include "bench/support/futex_pingpong.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <new>

#include "kvl/clock.h"

namespace kvl::bench {

// One turn counter per direction, each on a cache line of its own, with the sleeper's flag beside
// it so that a waker makes no system call for a side that is awake.
struct FutexPingPong::Shared {
  struct alignas(128) Word {
    std::atomic<std::uint32_t> turn{0};
    std::atomic<std::uint32_t> sleeping{0};
  };
  Word question;
  Word reply;
  std::atomic<std::uint32_t> stopped{0};
  alignas(4096) std::array<std::byte, kPayloadBytesMax> payload;
};

namespace {

using Word = std::atomic<std::uint32_t>;

void wake(Word& turn, Word& sleeping) {
  if (sleeping.load(std::memory_order_seq_cst) == 0) return;
  ::syscall(SYS_futex, &turn, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Until turn != seen. False: the time is over.
bool await(Word& turn, Word& sleeping, std::uint32_t seen, std::int64_t spin_us,
           std::int64_t deadline_ns) {
  const SteadyClock clock;
  const std::int64_t spin_until_ns = clock.now_ns() + spin_us * 1000;
  while (turn.load(std::memory_order_acquire) == seen) {
    const std::int64_t now_ns = clock.now_ns();
    if (now_ns < spin_until_ns) {
      __builtin_ia32_pause();
      continue;
    }
    if (now_ns >= deadline_ns) return false;
    const std::int64_t left_ns = deadline_ns - now_ns;
    const timespec limit{left_ns / 1'000'000'000, left_ns % 1'000'000'000};
    sleeping.store(1, std::memory_order_seq_cst);
    if (turn.load(std::memory_order_seq_cst) == seen) {
      ::syscall(SYS_futex, &turn, FUTEX_WAIT, seen, &limit, nullptr, 0);
    }
    sleeping.store(0, std::memory_order_relaxed);
  }
  return true;
}

}  // namespace

Result<std::unique_ptr<FutexPingPong>> FutexPingPong::map(int fd) {
  void* const data =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (data == MAP_FAILED) {
    const int error = errno;
    ::close(fd);
    return Status{Code::exhausted, "map ping-pong memory", error};
  }
  return std::unique_ptr<FutexPingPong>(new FutexPingPong(static_cast<Shared*>(data), fd));
}

Result<std::unique_ptr<FutexPingPong>> FutexPingPong::create() {
  const int fd = ::memfd_create("kvlane-pingpong", MFD_CLOEXEC);
  if (fd < 0) return Status{Code::exhausted, "memfd_create", errno};
  if (::ftruncate(fd, sizeof(Shared)) != 0) {
    const int error = errno;
    ::close(fd);
    return Status{Code::exhausted, "size ping-pong memory", error};
  }
  auto side = map(fd);
  if (side.ok()) new ((*side)->shared_) Shared;
  return side;
}

Result<std::unique_ptr<FutexPingPong>> FutexPingPong::attach(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return Status{Code::not_found, "open ping-pong memory", errno};
  if (::lseek(fd, 0, SEEK_END) < static_cast<off_t>(sizeof(Shared))) {
    ::close(fd);
    return Status{Code::invalid_argument, "not ping-pong memory: too short"};
  }
  return map(fd);
}

FutexPingPong::~FutexPingPong() {
  ::munmap(shared_, sizeof(Shared));
  ::close(fd_);
}

std::string FutexPingPong::path() const {
  return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd_);
}

Result<std::vector<double>> FutexPingPong::ask(std::size_t turns, std::size_t payload_bytes,
                                               std::int64_t spin_us, std::int64_t timeout_ms) {
  if (payload_bytes > kPayloadBytesMax) return Status{Code::invalid_argument, "payload too long"};
  const SteadyClock clock;
  std::vector<std::byte> source(payload_bytes, std::byte{0x5a});
  std::vector<double> samples(turns);
  for (double& sample : samples) {
    const std::uint32_t seen = shared_->reply.turn.load(std::memory_order_relaxed);
    const std::int64_t start_ns = clock.now_ns();
    std::memcpy(shared_->payload.data(), source.data(), payload_bytes);
    shared_->question.turn.fetch_add(1, std::memory_order_seq_cst);
    wake(shared_->question.turn, shared_->question.sleeping);
    if (!await(shared_->reply.turn, shared_->reply.sleeping, seen, spin_us,
               start_ns + timeout_ms * 1'000'000)) {
      return Status{Code::timed_out, "no answer over shared memory"};
    }
    sample = static_cast<double>(clock.now_ns() - start_ns) / 1000;
  }
  return samples;
}

Status FutexPingPong::answer(std::int64_t spin_us, std::int64_t timeout_ms) {
  const SteadyClock clock;
  std::uint32_t seen = 0;  // the turn before the first question
  for (;;) {
    if (!await(shared_->question.turn, shared_->question.sleeping, seen, spin_us,
               clock.now_ns() + timeout_ms * 1'000'000)) {
      return {Code::timed_out, "no question over shared memory"};
    }
    if (shared_->stopped.load(std::memory_order_acquire) != 0) return {};
    seen = shared_->question.turn.load(std::memory_order_relaxed);
    shared_->reply.turn.fetch_add(1, std::memory_order_seq_cst);
    wake(shared_->reply.turn, shared_->reply.sleeping);
  }
}

void FutexPingPong::stop() {
  shared_->stopped.store(1, std::memory_order_release);
  shared_->question.turn.fetch_add(1, std::memory_order_seq_cst);
  wake(shared_->question.turn, shared_->question.sleeping);
}

}  // namespace kvl::bench
