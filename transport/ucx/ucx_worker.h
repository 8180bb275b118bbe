// The objects of an opened device: a UCX context for its transports, and a worker.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvl/status.h"
#include "transport/ucx/ucx_api.h"

namespace kvl::ucx {

struct MemoryUnmap {
  const UcxApi* api = nullptr;
  ucp_context_h context = nullptr;
  void operator()(ucp_mem_h memory) const {
    // What cannot be unmapped is left: there is nobody who could do more.
    [[maybe_unused]] const ucs_status_t status = api->mem_unmap(context, memory);
  }
};
using MappedMemory = std::unique_ptr<ucp_mem, MemoryUnmap>;

// UCX's endpoints are closed in two steps: this is what is left between them.
struct Closing {
  ucs_status_ptr_t request = nullptr;
};

// What a worker is for. Without a use for remote memory UCX takes no puts from anybody either.
enum class Use : std::uint8_t { remote_memory, messages };

class Worker {
 public:
  // `transports` and `net_devices` as UCX_TLS and UCX_NET_DEVICES name them; "": all. unavailable:
  // UCX has no such transport or device here; exhausted.
  static Result<std::unique_ptr<Worker>> open(const UcxApi& api, const std::string& transports,
                                              const std::string& net_devices,
                                              const std::string& log_level, Use use);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  // Nothing touches memory any more; no endpoint may be left.
  void shut();

  const UcxApi& api() const { return api_; }
  ucp_worker_h worker() const { return worker_; }
  ucp_context_h context() const { return context_; }
  const std::vector<std::byte>& address() const { return address_; }
  std::size_t request_bytes() const { return request_bytes_; }
  int wait_fd() const { return wait_fd_; }
  // Whether the owner may sleep on wait_fd().
  bool may_wait() const { return api_.worker_arm(worker_) == UCS_OK; }

  // `failed` is called from worker_progress() with `argument` once the peer is lost.
  ucs_status_t connect(const std::vector<std::byte>& address, ucp_err_handler_cb_t failed,
                       void* argument, ucp_ep_h* ep) const;
  // By force: operations under way end with UCS_ERR_CANCELED. closed() says when it is done.
  Closing close(ucp_ep_h ep) const;
  bool closed(Closing& closing) const;

 private:
  Worker(const UcxApi& api, Use use) : api_(api), use_(use) {}
  Status make_context(const std::string& transports, const std::string& net_devices,
                      const std::string& log_level);
  Status make_worker();

  const UcxApi api_;
  const Use use_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  std::vector<std::byte> address_;
  std::size_t request_bytes_ = 0;
  int wait_fd_ = -1;
};

}  // namespace kvl::ucx
