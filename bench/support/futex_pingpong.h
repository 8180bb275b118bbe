// What two processes reach with shared memory and a futex: a 4 KiB write, a notification and its
// answer. The bound for the latency of shm.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvl/memory.h"
#include "kvl/status.h"

namespace kvl::bench {

// One side; both map the same memory. Not thread-safe; the two sides are two threads or processes.
class FutexPingPong {
 public:
  static constexpr std::size_t kPayloadBytesMax = 64 << 10;

  // The side that makes the memory. path() is how the other one opens it while this one lives.
  static Result<std::unique_ptr<FutexPingPong>> create();
  static Result<std::unique_ptr<FutexPingPong>> attach(const std::string& path);
  ~FutexPingPong();
  FutexPingPong(const FutexPingPong&) = delete;
  FutexPingPong& operator=(const FutexPingPong&) = delete;

  std::string path() const;

  // Writes `payload_bytes`, wakes the answerer, waits for the answer; one sample in microseconds
  // per turn. Before it sleeps each side looks for `spin_us`. timed_out: no answer in timeout_ms.
  Result<std::vector<double>> ask(std::size_t turns, std::size_t payload_bytes,
                                  std::int64_t spin_us, std::int64_t timeout_ms);
  // Answers until the asker says so (its end or its stop()), or for timeout_ms without a question.
  Status answer(std::int64_t spin_us, std::int64_t timeout_ms);
  void stop();

 private:
  struct Shared;
  FutexPingPong(Shared* shared, int fd) : shared_(shared), fd_(fd) {}
  static Result<std::unique_ptr<FutexPingPong>> map(int fd);

  Shared* shared_;
  int fd_;
};

}  // namespace kvl::bench
