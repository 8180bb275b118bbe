// One seeded run of a simulated cluster: what it is given, and what came of it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "kvl/transport.h"
#include "transport/sim/sim_world.h"

namespace kvl::simulation {

// serving: prefill and decode ranks with engine, handoff, page pool and rendezvous client.
// engines: engines alone, with random transfers in both directions.
enum class World : std::uint8_t { serving, engines };

// The transport of a node's next process, with so many devices.
using MakeTransport =
    std::function<std::unique_ptr<Transport>(sim::NodeId node, std::uint32_t devices)>;

struct RunOptions {
  std::uint64_t seed = 1;
  World world = World::serving;
  bool faults = true;  // things break; false: a healthy network, everything must arrive
  bool noise = true;   // the network drops, delays, repeats, corrupts now and then
  bool trace = false;  // what processes and faults do
  bool trace_packets = false;

  // serving. What is not given is chosen by the seed; a smaller choice keeps the rest as it was.
  std::uint32_t requests = 20;
  std::optional<std::uint32_t> prefills, decodes;        // instances of each role
  std::optional<std::uint32_t> prefill_tp, decode_tp;    // ranks of an instance
  std::optional<std::uint32_t> devices;                  // rails of an engine
  std::optional<std::set<std::uint32_t>> keep_requests;  // only these, by number
  std::optional<std::set<std::uint32_t>> keep_faults;

  // engines
  std::uint32_t engines = 3;
  std::uint32_t transfers = 80;  // submitted in all
  // What carries their bytes over the run's network; empty: the simulator's own transport.
  std::function<MakeTransport(sim::SimWorld&)> transport;
};

struct RunReport {
  bool ok = false;
  std::string violation;     // what was wrong; "" when ok. Up to the first ':' it names the check
  std::uint64_t digest = 0;  // equal for equal options: the run can be replayed
  std::uint64_t steps = 0;
  std::int64_t virtual_ns = 0;
  std::uint32_t requests = 0;  // handoffs, or transfers
  std::uint32_t done = 0, failed = 0, refused = 0;
  std::uint32_t quarantined = 0;  // ended before the pages were proven safe
  std::uint32_t crashes = 0, faults = 0;
  std::vector<std::string> trace;
};

RunReport run(const RunOptions& options);

// The command that repeats a run.
std::string command_of(const RunOptions& options);

// The two worlds. See handoff_run.cc and engine_run.cc for what they check.
RunReport run_serving(const RunOptions& options);
RunReport run_engines(const RunOptions& options);

}  // namespace kvl::simulation
