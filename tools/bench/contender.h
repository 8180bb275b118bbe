// Who is measured: the engine and what it is compared with, in short rounds one after the other, so
// that a drift of the machine's speed meets all of them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/support/raw_socket.h"
#include "tools/bench/test_bed.h"

namespace kvl::bench {

// What one contender did so far.
struct Series {
  std::string name;
  std::vector<double> gb_per_s;     // of each round; GB = 10^9 bytes
  std::vector<double> transfer_us;  // of each transfer
  double seconds = 0;
  double bytes = 0;
  double cpu_seconds = 0;  // of both processes

  bool measured() const { return bytes > 0; }
  double rate() const;  // median of the rounds
  double cpu_s_per_gb() const;
  double percentile_us(double q) const;
};

class Contender {
 public:
  virtual ~Contender() = default;
  virtual const char* name() const = 0;
  // Moves transfers for about `seconds`, at least one, and adds one round to `series`.
  virtual Status round(double seconds, Series& series) = 0;
};

struct LoadShape {
  Direction direction = Direction::write;
  std::uint32_t depth = 1;  // transfers in flight
  bool notes = true;        // one with each written transfer
};

std::unique_ptr<Contender> make_engine_contender(TestBed& bed, const LoadShape& shape,
                                                 const char* name = "engine");
// One thread, from the bed's arena to another one of this process.
Result<std::unique_ptr<Contender>> make_memcpy_contender(TestBed& bed, const LoadShape& shape,
                                                         bool foreign);
// unsupported: the target did not tell its address.
Result<std::unique_ptr<Contender>> make_process_vm_contender(TestBed& bed, const LoadShape& shape);
// The same connections, threads, congestion control, buffers and pages. unsupported: strides that
// are no multiple of the page size. `host` is numeric. `congestion` (optional) receives the control
// that is really in force.
Result<std::unique_ptr<Contender>> make_socket_contender(TestBed& bed, const LoadShape& shape,
                                                         const RawSocketOptions& options,
                                                         const std::string& host,
                                                         std::string* congestion = nullptr);

struct RoundPlan {
  double seconds = 2;  // of the first contender, all rounds together
  std::size_t rounds_min = 5;
  std::function<void(std::size_t round)> progress;
};
// A B C, C B A, A B C …: one Series per contender, in their order.
Result<std::vector<Series>> interleave(Session& session,
                                       const std::vector<std::unique_ptr<Contender>>& contenders,
                                       const RoundPlan& plan);

}  // namespace kvl::bench
