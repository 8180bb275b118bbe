// What a seed means: the cluster's shape, its requests and what breaks when. Every request and
// every fault is derived from the seed and its own number alone, so that leaving one out changes no
// other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/handoff.h"
#include "kvl/page_layout.h"
#include "tools/sim/run.h"
#include "transport/sim/sim_world.h"

namespace kvl::simulation {

inline constexpr std::int64_t kMs = 1'000'000;

enum class FaultKind : std::uint8_t {
  partition,   // both ways
  one_way,     // packets of one direction disappear
  clog,        // packets wait
  nic,         // a device dies and comes back
  lanes,       // all connections between two engines break
  crash,       // kill -9, then a new process
  machine,     // power off, then a new process
  stop,        // SIGSTOP, then SIGCONT
  slow,        // the process is scheduled late, again and again
  abort,       // a client cancels its request
  rendezvous,  // the rendezvous loses its memory, or is not there for a while
};
inline constexpr int kFaultKinds = 11;
std::string_view to_string(FaultKind kind);

struct Fault {
  std::uint32_t number = 0;
  FaultKind kind = FaultKind::partition;
  std::int64_t at_ns = 0, duration_ns = 0;
  std::uint64_t a = 0, b = 0, c = 0;  // which process, device, request: by remainder
};

struct Request {
  std::uint32_t number = 0;
  std::uint64_t room = 0;
  std::uint64_t content = 0;              // what its bytes are made of
  std::int64_t at_ns = 0;                 // when the router sends it
  std::uint32_t prefill = 0, decode = 0;  // instances
  std::uint64_t tokens = 0, skip_tokens = 0;
  HandoffMode mode = HandoffMode::push;
  std::int64_t deadline_ms = 0;
  std::uint64_t chunk_tokens = 0;  // prefill computes so many at a time
  std::int64_t compute_ns = 0;     // … for so long per layer
};

struct Side {
  std::uint32_t instances = 1, tp = 1, pp = 1;
  LayoutOptions layout;
  std::uint32_t ranks() const { return tp * pp; }
};

struct Scenario {
  ModelGeometry geometry{3, 4, 8, false, Dtype::bf16};
  Side prefill, decode;
  std::uint32_t devices = 1;
  HandoffConfig handoff;
  std::vector<std::pair<std::string, std::string>> engine_flags;
  sim::SimOptions network;
  std::int64_t latency_ns = 0;  // from an arrival until its process runs, on average
  std::uint32_t lease_ms = 0, lease_max_ms = 0;
  std::vector<Request> requests;  // in order of time
  std::vector<Fault> faults;      // in order of time
};

Scenario make_scenario(const RunOptions& options);

}  // namespace kvl::simulation
