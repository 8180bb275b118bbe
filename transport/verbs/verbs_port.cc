// Opening a port, and asking what it can do.
#include "transport/verbs/verbs_port.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace kvl::verbs {
namespace {

constexpr std::uint32_t kQueueMin = 16;

std::uint32_t at_most(std::int64_t wanted, int device) {
  const std::int64_t allowed = std::max<std::int64_t>(device, kQueueMin);
  return static_cast<std::uint32_t>(std::min(wanted, allowed));
}

std::uint8_t reads(int device) { return static_cast<std::uint8_t>(std::clamp(device, 0, 16)); }

template <typename T>
Status keep(Owned<T>& owner, T* object, int (*destroy)(T*), const char* what) {
  if (object == nullptr) return verbs_error(what, errno);
  owner = Owned<T>(object, {destroy});
  return {};
}

bool set_nonblocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

}  // namespace

Status verbs_error(const char* what, int error) {
  const bool full =
      error == ENOMEM || error == EMFILE || error == ENFILE || error == ENOSPC || error == EAGAIN;
  return {full ? Code::exhausted : Code::unavailable, what, error};
}

Result<std::unique_ptr<OpenPort>> OpenPort::open(const VerbsApi& api, const FoundPort& found,
                                                 const VerbsConfig& config) {
  std::unique_ptr<OpenPort> self(new OpenPort(api, found, config));
  Result<Owned<ibv_context>> context = open_context(api, found.ibv_name);
  if (!context.ok()) return context.status();
  self->context_ = std::move(*context);
  KVL_TRY(self->refresh());
  KVL_TRY(self->ask_limits());
  KVL_TRY(keep(self->pd_, api.alloc_pd(self->context()), api.dealloc_pd,
               "allocate RDMA protection domain"));
  KVL_TRY(self->make_queues());
  KVL_TRY(self->make_wait_fd());
  return self;
}

OpenPort::~OpenPort() {
  if (wait_fd_ >= 0) ::close(wait_fd_);
}

Status OpenPort::refresh() {
  Result<PortAddress> address = address_of(api_, context_.get(), number_, config_);
  if (!address.ok()) return address.status();
  address_ = *address;
  return {};
}

Status OpenPort::ask_limits() {
  ibv_device_attr device{};
  ibv_port_attr port{};
  if (api_.query_device(context_.get(), &device) != 0 ||
      api_.query_port(context_.get(), number_, &port) != 0) {
    return verbs_error("ask RDMA device for its limits", errno);
  }
  cq_depth_ = at_most(config_.cq_depth, device.max_cqe);
  rq_depth_ = std::min(at_most(config_.rq_depth, device.max_srq_wr), cq_depth_ / 2);
  sends_max_ = cq_depth_ - rq_depth_;
  sq_depth_ = std::min(at_most(config_.sq_depth, device.max_qp_wr), sends_max_);
  op_bytes_max_ = std::min<std::uint64_t>(static_cast<std::uint64_t>(config_.op_bytes),
                                          std::max<std::uint32_t>(port.max_msg_sz, 4096));
  memory_bytes_max_ = device.max_mr_size;
  reads_max_ = reads(device.max_qp_init_rd_atom);
  reads_served_max_ = reads(device.max_qp_rd_atom);
  return {};
}

Status OpenPort::make_queues() {
  KVL_TRY(keep(channel_, api_.create_comp_channel(context_.get()), api_.destroy_comp_channel,
               "create RDMA completion channel"));
  KVL_TRY(keep(
      cq_, api_.create_cq(context_.get(), static_cast<int>(cq_depth_), nullptr, channel_.get(), 0),
      api_.destroy_cq, "create RDMA completion queue: see ulimit -l"));
  ibv_srq_init_attr attributes{};
  attributes.attr.max_wr = rq_depth_;
  attributes.attr.max_sge = 1;
  return keep(srq_, api_.create_srq(pd_.get(), &attributes), api_.destroy_srq,
              "create RDMA receive queue: see ulimit -l");
}

Status OpenPort::make_wait_fd() {
  wait_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
  if (wait_fd_ < 0) return verbs_error("create epoll descriptor", errno);
  for (const int fd : {channel_->fd, context_->async_fd}) {
    epoll_event event{};
    event.events = EPOLLIN;
    if (!set_nonblocking(fd) || ::epoll_ctl(wait_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
      return verbs_error("watch RDMA device", errno);
    }
  }
  return {};
}

void OpenPort::arm_events() {
  ibv_cq* cq = nullptr;
  void* context = nullptr;
  unsigned int count = 0;
  while (api_.get_cq_event(channel_.get(), &cq, &context) == 0) ++count;
  if (count > 0) api_.ack_cq_events(cq_.get(), count);
  // Fails only on a device that is gone: then an event of the device is there.
  [[maybe_unused]] const int result = ::ibv_req_notify_cq(cq_.get(), 0);
}

}  // namespace kvl::verbs
