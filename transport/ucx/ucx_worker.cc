// Opening and closing of UCX's objects.
#include "transport/ucx/ucx_worker.h"

#include <utility>

#include "transport/ucx/ucx_wire.h"

namespace kvl::ucx {
namespace {

constexpr std::uint32_t kPrefixed = UCP_VERSION(1, 17);  // options by their whole names

Status failed(const char* what, ucs_status_t status) {
  return {status == UCS_ERR_NO_MEMORY ? Code::exhausted : Code::unavailable, what};
}

// What UCX's tcp needs, where runs are messages.
void tune(const UcxApi& api, ucp_config_t* config) {
  // A run is one message; the receiver's buffer is 64k by itself.
  static_assert(kCopyBytes + 512 < (40 << 10));
  static constexpr std::pair<const char*, const char*> kValues[] = {
      // One event at a time: the first of many may free the endpoint of another.
      {"MAX_POLL", "1"},
      {"TX_SEG_SIZE", "40k"},
  };
  const bool prefixed = api.version() >= kPrefixed;
  for (const auto& [name, value] : kValues) {
    // A UCX that does not know one works without it.
    [[maybe_unused]] const ucs_status_t status =
        api.config_modify(config, ((prefixed ? "TCP_" : "") + std::string(name)).c_str(), value);
  }
}

}  // namespace

Result<std::unique_ptr<Worker>> Worker::open(const UcxApi& api, const std::string& transports,
                                             const std::string& net_devices,
                                             const std::string& log_level, Use use) {
  std::unique_ptr<Worker> self(new Worker(api, use));
  KVL_TRY(self->make_context(transports, net_devices, log_level));
  KVL_TRY(self->make_worker());
  return self;
}

Status Worker::make_context(const std::string& transports, const std::string& net_devices,
                            const std::string& log_level) {
  ucp_config_t* config = nullptr;
  ucs_status_t status = api_.config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return failed("read UCX's configuration", status);
  // Of the process, not of this context; what it does not know it leaves as it is.
  [[maybe_unused]] const ucs_status_t quiet =
      api_.config_modify(config, "LOG_LEVEL", log_level.c_str());
  if (!transports.empty()) status = api_.config_modify(config, "TLS", transports.c_str());
  if (status == UCS_OK && !net_devices.empty()) {
    status = api_.config_modify(config, "NET_DEVICES", net_devices.c_str());
  }
  if (use_ == Use::messages) tune(api_, config);
  if (status == UCS_OK) {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
    params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
    if (use_ == Use::remote_memory) params.features |= UCP_FEATURE_RMA;
    params.mt_workers_shared = 1;  // memory is registered beside the owner
    status = api_.init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &context_);
  }
  api_.config_release(config);
  if (status != UCS_OK) return failed("open UCX for these transports: see ucx_info -d", status);
  ucp_context_attr_t attributes{};
  attributes.field_mask = UCP_ATTR_FIELD_REQUEST_SIZE;
  status = api_.context_query(context_, &attributes);
  if (status != UCS_OK) return failed("ask UCX for its limits", status);
  request_bytes_ = attributes.request_size;
  return {};
}

Status Worker::make_worker() {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SINGLE;
  ucs_status_t status = api_.worker_create(context_, &params, &worker_);
  if (status != UCS_OK) return failed("open UCX worker", status);
  status = api_.worker_get_efd(worker_, &wait_fd_);
  if (status != UCS_OK) wait_fd_ = -1;  // not every transport can wake us: then it is polled
  ucp_address_t* address = nullptr;
  std::size_t bytes = 0;
  status = api_.worker_get_address(worker_, &address, &bytes);
  if (status != UCS_OK) return failed("address of UCX worker", status);
  const auto* const raw = reinterpret_cast<const std::byte*>(address);
  address_.assign(raw, raw + bytes);
  api_.worker_release_address(worker_, address);
  if (bytes > kAddressBytesMax) {
    return {Code::unsupported, "UCX's address is too long: name fewer in ucx.net_devices"};
  }
  return {};
}

void Worker::shut() {
  if (worker_ != nullptr) api_.worker_destroy(worker_);
  worker_ = nullptr;
}

Worker::~Worker() {
  shut();
  if (context_ != nullptr) api_.cleanup(context_);
}

ucs_status_t Worker::connect(const std::vector<std::byte>& address, ucp_err_handler_cb_t failed,
                             void* argument, ucp_ep_h* ep) const {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {failed, argument};
  return api_.ep_create(worker_, &params, ep);
}

Closing Worker::close(ucp_ep_h ep) const {
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = UCP_EP_CLOSE_FLAG_FORCE;
  const ucs_status_ptr_t request = api_.ep_close_nbx(ep, &params);
  return {UCS_PTR_IS_PTR(request) ? request : nullptr};  // an error, too, is the end of it
}

bool Worker::closed(Closing& closing) const {
  if (closing.request == nullptr) return true;
  if (api_.request_check_status(closing.request) == UCS_INPROGRESS) return false;
  api_.request_free(closing.request);
  closing.request = nullptr;
  return true;
}

}  // namespace kvl::ucx
