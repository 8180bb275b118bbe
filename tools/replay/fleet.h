// The processes of a replay: rendezvous, workers, router, each a `kvlane` of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvl/status.h"
#include "tools/bench/child_process.h"

namespace kvl::replay {

struct FleetOptions {
  std::uint32_t prefill = 2, decode = 2;
  std::uint32_t prefill_tp = 2, decode_tp = 1, prefill_pp = 1, decode_pp = 1;
  std::string model = "tiny";
  std::string transport;  // "": the best
  std::string mode = "best";
  std::string policy = "round_robin";
  std::uint32_t page_tokens = 64;
  std::uint64_t pool_bytes = 0;  // per worker
  bool damage_received = false;  // a control: decode flips a bit of each handoff
  std::string config_file;       // of all of them; "": none
  std::vector<std::pair<std::string, std::string>> settings;  // for the workers
};

class Fleet {
 public:
  // Everything up, or the sentence that says what is not. Ends all on destruction.
  static Result<std::unique_ptr<Fleet>> start(const FleetOptions& options, std::string* error);

  std::uint16_t router_port() const { return router_port_; }
  // "" or the name and end of a process that has ended.
  std::string lost();
  // Sum of a metric over all prefill (or decode) workers; 0 where nobody answers.
  double metric(bool prefill, const std::string& name);
  // Transports that the workers' rails have moved bytes with, joined by '+'.
  std::string transports();

 private:
  struct Member {
    std::string name;
    bool prefill = false;
    std::uint16_t port = 0;
    std::unique_ptr<bench::ChildProcess> process;
  };
  Status add(const std::string& name, bool prefill, const std::vector<std::string>& arguments,
             std::string* error);
  std::vector<Member> members_;  // in order of start; ended in reverse
  std::uint16_t router_port_ = 0;
};

}  // namespace kvl::replay
