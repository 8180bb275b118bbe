// One session of two Links that carries on, or gives up and cleans up, when calls fail.
#pragma once

#include <memory>
#include <string>

#include "tests/transport/conformance/harness.h"
#include "transport/fault/fault_plan.h"

namespace kvl::conformance {

struct SessionOptions {
  std::string transport;
  std::string flavour;         // of the transport, as in Variant
  bool device_memory = false;  // on side a
  bool retry = false;          // calls that answer exhausted are made again
};

struct SessionResult {
  bool reported = false;  // a call or an event said that something failed
  std::string first_report;
  std::string broken;  // what must never be; "" fine
};

SessionResult run_session(const SessionOptions& options, std::shared_ptr<fault::FaultState> faults);

}  // namespace kvl::conformance
