// The objects of an opened port: context, protection domain, completion channel and queue, shared
// receive queue; and its limits, as the device says.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kvl/status.h"
#include "transport/verbs/verbs_api.h"
#include "transport/verbs/verbs_config.h"
#include "transport/verbs/verbs_device.h"

namespace kvl::verbs {

class OpenPort {
 public:
  static Result<std::unique_ptr<OpenPort>> open(const VerbsApi& api, const FoundPort& found,
                                                const VerbsConfig& config);
  ~OpenPort();
  OpenPort(const OpenPort&) = delete;
  OpenPort& operator=(const OpenPort&) = delete;

  const VerbsApi& api() const { return api_; }
  const VerbsConfig& config() const { return config_; }
  ibv_context* context() const { return context_.get(); }
  ibv_pd* pd() const { return pd_.get(); }
  ibv_cq* cq() const { return cq_.get(); }
  ibv_srq* srq() const { return srq_.get(); }
  std::uint8_t number() const { return number_; }
  const PortAddress& address() const { return address_; }
  // After the port or its addresses have changed. The old address stays where there is none now.
  Status refresh();

  // Readable when a completion (after arm_events) or an event of the device is there.
  int wait_fd() const { return wait_fd_; }
  // Takes what the completion channel has, and asks to be told of the next completion. What came
  // before that must be polled for afterwards.
  void arm_events();

  std::uint32_t sq_depth() const { return sq_depth_; }
  std::uint32_t rq_depth() const { return rq_depth_; }
  // Work requests of all queue pairs that may be under way: the completion queue has room for all
  // of them to fail, and for every receive.
  std::uint32_t sends_max() const { return sends_max_; }
  std::uint64_t op_bytes_max() const { return op_bytes_max_; }
  std::uint64_t memory_bytes_max() const { return memory_bytes_max_; }
  std::uint8_t reads_max() const { return reads_max_; }
  std::uint8_t reads_served_max() const { return reads_served_max_; }

 private:
  OpenPort(const VerbsApi& api, const FoundPort& found, const VerbsConfig& config)
      : api_(api), config_(config), number_(found.port) {}
  Status ask_limits();
  Status make_queues();
  Status make_wait_fd();

  const VerbsApi api_;
  const VerbsConfig config_;
  const std::uint8_t number_;
  PortAddress address_;
  // In the order in which they are opened; closed the other way round.
  Owned<ibv_context> context_;
  Owned<ibv_pd> pd_;
  Owned<ibv_comp_channel> channel_;
  Owned<ibv_cq> cq_;
  Owned<ibv_srq> srq_;
  int wait_fd_ = -1;
  std::uint32_t sq_depth_ = 0, rq_depth_ = 0, cq_depth_ = 0, sends_max_ = 0;
  std::uint64_t op_bytes_max_ = 0, memory_bytes_max_ = 0;
  std::uint8_t reads_max_ = 0, reads_served_max_ = 0;
};

// What a failed call of the library means: exhausted where the device or the process is at a limit.
Status verbs_error(const char* what, int error);

}  // namespace kvl::verbs
