// What must hold between processes: the judge sees every rank's part in every request, also of
// processes that have died since.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "tools/sim/scenario.h"
#include "transport/sim/sim_world.h"

namespace kvl::simulation {

class Judge {
 public:
  Judge(sim::SimWorld& world, const Scenario& scenario) : world_(world), scenario_(scenario) {}

  // The first violation counts. Its text up to ':' names the check.
  void violate(const std::string& what);
  const std::string& violation() const { return violation_; }

  void opened(const Request& request, HandoffSide side, std::uint32_t rank);
  void refused(const Request& request) { verdicts_[request.room].refused = true; }
  void arrived(const Request& request, std::uint32_t decode_rank);  // every layer was told
  void committed(const Request& request, HandoffSide side, std::uint32_t rank);
  void failed(const Request& request, HandoffSide side, std::uint32_t rank, bool safe);

  // Without faults nothing may fail.
  void check_all_done();
  void count(RunReport& report) const;

  // The metadata that a prefill rank sends with a request.
  static std::vector<std::byte> metadata(const Request& request, std::uint32_t rank);

 private:
  struct Rank {
    bool opened = false, arrived = false, committed = false, failed = false, unsafe = false;
  };
  struct Verdict {
    bool refused = false;
    std::map<std::uint32_t, Rank> prefill, decode;
  };
  Rank& end_of(const Request& request, HandoffSide side, std::uint32_t rank);

  sim::SimWorld& world_;
  const Scenario& scenario_;
  std::map<std::uint64_t, Verdict> verdicts_;  // by room
  std::string violation_;
};

}  // namespace kvl::simulation
