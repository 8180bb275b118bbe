// Opening a device, and asking it what it can do.
#include "transport/libfabric/fabric_endpoint.h"

#include <algorithm>

#include "transport/libfabric/fabric_wire.h"

namespace kvl::libfabric {
namespace {

Status failed(const char* what, int error) {
  const bool full = error == -FI_ENOMEM || error == -FI_EMFILE || error == -FI_ENOSPC;
  return {full ? Code::exhausted : Code::unavailable, what, -error};
}

// Keeps what the provider has opened.
template <typename T>
Status keep(Fid<T>& owner, T* object, int error, const char* what) {
  if (error != 0) return failed(what, error);
  owner.reset(object);
  return {};
}

}  // namespace

Result<std::unique_ptr<Endpoint>> Endpoint::open(const FabricApi& api, const FoundDevice& device,
                                                 const FabricConfig& config) {
  std::unique_ptr<Endpoint> self(new Endpoint(
      device.efa, api.version(), InfoPtr(api.dupinfo(device.info.get()), {api.freeinfo})));
  if (!self->info_) return Status{Code::exhausted, "copy libfabric's description of a device"};
  fi_info& info = *self->info_;
  fid_fabric* fabric = nullptr;
  int error = api.fabric(info.fabric_attr, &fabric, nullptr);
  KVL_TRY(keep(self->fabric_, fabric, error, "open libfabric fabric"));
  fid_domain* domain = nullptr;
  error = ::fi_domain(fabric, &info, &domain, nullptr);
  KVL_TRY(keep(self->domain_, domain, error, "open libfabric domain"));
  self->mr_mode_ = info.domain_attr->mr_mode;
  self->key_bytes_ = info.domain_attr->mr_key_size;
  self->tx_depth_ = static_cast<std::uint32_t>(std::min<std::size_t>(
      static_cast<std::size_t>(config.tx_depth), std::max<std::size_t>(info.tx_attr->size, 16)));
  self->rx_depth_ = static_cast<std::uint32_t>(std::min<std::size_t>(
      static_cast<std::size_t>(config.rx_depth), std::max<std::size_t>(info.rx_attr->size, 16)));
  self->rma_bytes_max_ = info.ep_attr->max_msg_size;
  self->immediates_max_ = device.immediates ? static_cast<std::uint32_t>(config.immediates) : 0;

  fi_av_attr av_attributes{};
  av_attributes.type = FI_AV_TABLE;
  fid_av* av = nullptr;
  error = ::fi_av_open(domain, &av_attributes, &av, nullptr);
  KVL_TRY(keep(self->av_, av, error, "open libfabric address vector"));
  KVL_TRY(self->make_cq());

  KVL_TRY(self->make_ep());
  return self;
}

Status Endpoint::make_ep() {
  fid_ep* ep = nullptr;
  int error = ::fi_endpoint(domain_.get(), info_.get(), &ep, nullptr);
  Fid<fid_ep> made;
  KVL_TRY(keep(made, ep, error, "open libfabric endpoint"));
  error = ::fi_ep_bind(ep, &av_->fid, 0);
  if (error == 0) error = ::fi_ep_bind(ep, &cq_->fid, FI_TRANSMIT | FI_RECV);
  if (error != 0) return failed("bind libfabric endpoint", error);
  ask_options(ep);
  error = ::fi_enable(ep);
  if (error != 0) return failed("enable libfabric endpoint", error);
  address_.resize(kAddressBytesMax);
  std::size_t bytes = address_.size();
  error = ::fi_getname(&ep->fid, address_.data(), &bytes);
  if (error != 0) return failed("name of libfabric endpoint", error);
  address_.resize(bytes);
  ep_ = std::move(made);
  return {};
}

Status Endpoint::make_cq() {
  fi_cq_attr attributes{};
  attributes.format = FI_CQ_FORMAT_DATA;
  // Nothing protects a completion queue from overrun on every provider: there is room for all.
  attributes.size = std::size_t{tx_depth_} + rx_depth_ + immediates_max_;
  attributes.wait_obj = FI_WAIT_FD;
  fid_cq* cq = nullptr;
  int error = ::fi_cq_open(domain_.get(), &attributes, &cq, nullptr);
  if (error == 0 && ::fi_control(&cq->fid, FI_GETWAIT, &wait_fd_) != 0) {
    ::fi_close(&cq->fid);
    error = -FI_ENOSYS;
  }
  if (error != 0) {  // not every provider can wake us: then it is polled
    wait_fd_ = -1;
    attributes.wait_obj = FI_WAIT_NONE;
    error = ::fi_cq_open(domain_.get(), &attributes, &cq, nullptr);
  }
  return keep(cq_, cq, error, "open libfabric completion queue");
}

void Endpoint::ask_options(fid_ep* opened) {
  fid* const ep = &opened->fid;
  const std::uint32_t version = version_;
  const auto refuse = [&](const NewOption& option) {
    bool permitted = false;
    if (version >= option.since) {
      [[maybe_unused]] const int result =
          ::fi_setopt(ep, FI_OPT_ENDPOINT, option.name, &permitted, sizeof(permitted));
    }
  };
  const auto yes = [&](const NewOption& option) {
    bool value = false;
    std::size_t bytes = sizeof(value);
    return version >= option.since &&
           ::fi_getopt(ep, FI_OPT_ENDPOINT, option.name, &value, &bytes) == 0 && value;
  };
  std::size_t rma_bytes = 0, bytes = sizeof(rma_bytes);
  if (version >= kMaxRmaBytes.since &&
      ::fi_getopt(ep, FI_OPT_ENDPOINT, kMaxRmaBytes.name, &rma_bytes, &bytes) == 0 &&
      rma_bytes > 0) {
    rma_bytes_max_ = rma_bytes;
  }
  if (!efa_) return;
  refuse(kSharedMemoryPermitted);  // the shm transport is better at that
  refuse(kCudaApiPermitted);       // no copy by the CPU behind our back
  emulated_write_ = yes(kEfaEmulatedWrite);
  emulated_read_ = yes(kEfaEmulatedRead);
}

bool Endpoint::may_wait() const {
  fid* const fids[] = {&cq_->fid};
  return ::fi_trywait(fabric_.get(), const_cast<fid**>(fids), 1) == 0;
}

}  // namespace kvl::libfabric
