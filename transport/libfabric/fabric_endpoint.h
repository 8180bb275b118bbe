// The objects of an opened device: fabric, domain, completion queue, address vector, endpoint.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kvl/status.h"
#include "transport/libfabric/fabric_api.h"
#include "transport/libfabric/fabric_config.h"
#include "transport/libfabric/fabric_device.h"

namespace kvl::libfabric {

struct FidClose {
  template <typename T>
  void operator()(T* object) const {
    // What cannot be closed is left: there is nobody who could do more.
    [[maybe_unused]] const int result = ::fi_close(&object->fid);
  }
};
template <typename T>
using Fid = std::unique_ptr<T, FidClose>;

class Endpoint {
 public:
  static Result<std::unique_ptr<Endpoint>> open(const FabricApi& api, const FoundDevice& device,
                                                const FabricConfig& config);
  // For ever. Addresses have been removed, and registrations end after this
  // and before the domain: the only order that every provider bears.
  void shut() {
    ep_.reset();
    cq_.reset();
    av_.reset();
  }

  // The hard stop: whatever was under way is over, and touches nothing any more.
  void close_ep() { ep_.reset(); }
  // A new one, with a new address, on the same queue.
  Status make_ep();

  fid_ep* ep() const { return ep_.get(); }  // null: a new one could not be opened
  fid_cq* cq() const { return cq_.get(); }
  fid_av* av() const { return av_.get(); }
  fid_domain* domain() const { return domain_.get(); }
  const std::vector<std::byte>& address() const { return address_; }
  int wait_fd() const { return wait_fd_; }
  // Whether the owner may sleep on wait_fd().
  bool may_wait() const;

  // What the device is able to do, as it says.
  std::uint32_t tx_depth() const { return tx_depth_; }
  std::uint32_t rx_depth() const { return rx_depth_; }
  std::uint64_t rma_bytes_max() const { return rma_bytes_max_; }
  std::uint32_t immediates_max() const { return immediates_max_; }  // room for them in the queue
  std::uint32_t version() const { return version_; }
  bool emulated_write() const { return emulated_write_; }
  bool emulated_read() const { return emulated_read_; }
  std::uint64_t mr_mode(int bit) const { return static_cast<std::uint64_t>(mr_mode_ & bit); }
  std::size_t key_bytes() const { return key_bytes_; }

 private:
  Endpoint(bool efa, std::uint32_t version, InfoPtr info)
      : efa_(efa), version_(version), info_(std::move(info)) {}
  Status make_cq();
  void ask_options(fid_ep* opened);

  const bool efa_;
  const std::uint32_t version_;
  const InfoPtr info_;

  // In the order in which they are opened; closed the other way round.
  Fid<fid_fabric> fabric_;
  Fid<fid_domain> domain_;
  Fid<fid_av> av_;
  Fid<fid_cq> cq_;
  Fid<fid_ep> ep_;
  std::vector<std::byte> address_;
  int wait_fd_ = -1;
  int mr_mode_ = 0;
  std::size_t key_bytes_ = 8;
  std::uint32_t tx_depth_ = 0, rx_depth_ = 0, immediates_max_ = 0;
  std::uint64_t rma_bytes_max_ = 0;
  bool emulated_write_ = false, emulated_read_ = false;
};

}  // namespace kvl::libfabric
