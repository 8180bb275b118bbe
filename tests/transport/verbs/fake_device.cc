// Opening the device, its objects and their states.
#include "tests/transport/verbs/fake_device.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tests/transport/verbs/fake_objects.h"
#include "tests/transport/verbs/fake_wire.h"

namespace kvl::test {
namespace {

FakeDevice* current = nullptr;

using Lock = std::lock_guard<std::mutex>;
using Context = FakeDevice::Context;
using Pd = FakeDevice::Pd;
using Mr = FakeDevice::Mr;
using Channel = FakeDevice::Channel;
using Cq = FakeDevice::Cq;
using Srq = FakeDevice::Srq;
using Qp = FakeDevice::Qp;

template <typename T>
T* fail(int error) {
  errno = error;
  return nullptr;
}
Context& of(ibv_context* context) { return *static_cast<Context*>(context); }
FakeDevice& fake_of(ibv_context* context) { return *of(context).fake; }

ibv_device** list_devices(int* count) {
  *count = 1;
  return new ibv_device* [1] { &current->device };
}
ibv_context* open_device(ibv_device*) {
  FakeDevice& fake = *current;
  if (fake.open_error != 0) return fail<ibv_context>(fake.open_error);
  const Lock lock(fake.mutex);
  auto* const context = new Context{};
  context->fake = &fake;
  context->device = &fake.device;
  context->async_fd = ::eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
  context->ops.poll_cq = poll_fake_cq;
  context->ops.req_notify_cq = arm_fake_cq;
  context->ops.post_send = post_fake_send;
  context->ops.post_srq_recv = post_fake_receive;
  fake.contexts.push_back(context);
  ++fake.live;
  return context;
}
int close_device(ibv_context* context) {
  FakeDevice& fake = fake_of(context);
  const Lock lock(fake.mutex);
  std::erase(fake.contexts, &of(context));
  ::close(context->async_fd);
  delete &of(context);
  --fake.live;
  return 0;
}
int query_device(ibv_context* context, ibv_device_attr* out) {
  *out = fake_of(context).limits;
  out->phys_port_cnt = static_cast<std::uint8_t>(fake_of(context).ports.size());
  return 0;
}
int query_port(ibv_context* context, std::uint8_t number, ibv_port_attr* out) {
  const FakeDevice& fake = fake_of(context);
  const FakePort& port = fake.ports.at(number - 1U);
  out->state = port.state;
  out->link_layer = port.link_layer;
  out->lid = port.lid;
  out->active_mtu = port.mtu;
  out->max_msg_sz = fake.message_bytes_max;
  return 0;
}
ssize_t query_gids(ibv_context* context, ibv_gid_entry* out, std::size_t count_max, std::uint32_t,
                   std::size_t) {
  std::size_t count = 0;
  for (const FakePort& port : fake_of(context).ports) {
    for (const ibv_gid_entry& entry : port.gids) {
      if (count < count_max) out[count++] = entry;
    }
  }
  return static_cast<ssize_t>(count);
}

ibv_pd* alloc_pd(ibv_context* context) {
  ++fake_of(context).live;
  auto* const pd = new Pd{};
  pd->context = context;
  return pd;
}
int dealloc_pd(ibv_pd* pd) {
  FakeDevice& fake = fake_of(pd->context);
  if (static_cast<Pd*>(pd)->users > 0) fake.misuse.emplace_back("a protection domain in use ends");
  --fake.live;
  delete static_cast<Pd*>(pd);
  return 0;
}

ibv_mr* register_range(ibv_pd* pd, void* data, std::size_t bytes, std::uint64_t iova,
                       unsigned int access) {
  FakeDevice& fake = fake_of(pd->context);
  if (fake.register_error != 0) return fail<ibv_mr>(fake.register_error);
  const Lock lock(fake.mutex);
  auto* const mr = new Mr{};
  mr->context = pd->context;
  mr->pd = pd;
  mr->addr = data;
  mr->length = bytes;
  mr->base = iova;
  mr->access = access;
  mr->lkey = mr->rkey = 0x1000 + ++fake.numbers;
  fake.mrs.push_back(mr);
  ++static_cast<Pd*>(pd)->users;
  ++fake.live;
  return mr;
}
ibv_mr* register_dmabuf(ibv_pd* pd, std::uint64_t offset, std::size_t bytes, std::uint64_t iova,
                        int fd, int access) {
  FakeDevice& fake = fake_of(pd->context);
  if (!fake.takes_dmabuf) return fail<ibv_mr>(EOPNOTSUPP);
  if (::fcntl(fd, F_GETFD) < 0) return fail<ibv_mr>(EBADF);
  ++fake.dmabufs;
  [[maybe_unused]] const std::uint64_t unused = offset;
  return register_range(pd, reinterpret_cast<void*>(iova), bytes, iova,
                        static_cast<unsigned int>(access));
}
int deregister(ibv_mr* mr) {
  FakeDevice& fake = fake_of(mr->context);
  const Lock lock(fake.mutex);
  std::erase(fake.mrs, static_cast<Mr*>(mr));
  --static_cast<Pd*>(mr->pd)->users;
  --fake.live;
  delete static_cast<Mr*>(mr);
  return 0;
}

ibv_comp_channel* create_channel(ibv_context* context) {
  ++fake_of(context).live;
  auto* const channel = new Channel{};
  channel->context = context;
  channel->fd = ::eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
  return channel;
}
int destroy_channel(ibv_comp_channel* channel) {
  FakeDevice& fake = fake_of(channel->context);
  if (static_cast<Channel*>(channel)->cq != nullptr)
    fake.misuse.emplace_back("a channel in use ends");
  ::close(channel->fd);
  --fake.live;
  delete static_cast<Channel*>(channel);
  return 0;
}

ibv_cq* create_cq(ibv_context* context, int entries, void*, ibv_comp_channel* channel, int) {
  FakeDevice& fake = fake_of(context);
  if (entries > fake.limits.max_cqe) return fail<ibv_cq>(EINVAL);
  auto* const cq = new Cq(static_cast<std::size_t>(entries));
  cq->context = context;
  cq->channel = channel;
  cq->cqe = entries;
  static_cast<Channel*>(channel)->cq = cq;
  ++fake.live;
  return cq;
}
int destroy_cq(ibv_cq* ibv) {
  Cq* const cq = static_cast<Cq*>(ibv);
  FakeDevice& fake = fake_of(cq->context);
  if (cq->users > 0) fake.misuse.emplace_back("a completion queue in use ends");
  if (cq->unacknowledged > 0) fake.misuse.emplace_back("it would wait for its events for ever");
  static_cast<Channel*>(cq->channel)->cq = nullptr;
  --fake.live;
  delete cq;
  return 0;
}
int get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void** context) {
  std::uint64_t value = 0;
  FakeDevice& fake = fake_of(channel->context);
  const Lock lock(fake.mutex);
  if (::read(channel->fd, &value, sizeof(value)) != sizeof(value)) return -1;
  *context = nullptr;
  *cq = static_cast<Channel*>(channel)->cq;
  ++static_cast<Cq*>(*cq)->unacknowledged;
  return 0;
}
void ack_cq_events(ibv_cq* cq, unsigned int count) {
  static_cast<Cq*>(cq)->unacknowledged -= count;
}

ibv_srq* create_srq(ibv_pd* pd, ibv_srq_init_attr* attributes) {
  FakeDevice& fake = fake_of(pd->context);
  if (attributes->attr.max_wr > static_cast<std::uint32_t>(fake.limits.max_srq_wr)) {
    return fail<ibv_srq>(EINVAL);
  }
  auto* const srq = new Srq(attributes->attr.max_wr);
  srq->context = pd->context;
  srq->pd = pd;
  ++static_cast<Pd*>(pd)->users;
  ++fake.live;
  return srq;
}
int destroy_srq(ibv_srq* srq) {
  FakeDevice& fake = fake_of(srq->context);
  if (static_cast<Srq*>(srq)->users > 0) fake.misuse.emplace_back("a receive queue in use ends");
  --static_cast<Pd*>(srq->pd)->users;
  --fake.live;
  delete static_cast<Srq*>(srq);
  return 0;
}

ibv_qp* create_qp(ibv_pd* pd, ibv_qp_init_attr* attributes) {
  FakeDevice& fake = fake_of(pd->context);
  const Lock lock(fake.mutex);
  const ibv_qp_cap& cap = attributes->cap;
  if (cap.max_send_wr > static_cast<std::uint32_t>(fake.limits.max_qp_wr) ||
      cap.max_inline_data > fake.inline_max || attributes->qp_type != IBV_QPT_RC) {
    return fail<ibv_qp>(EINVAL);
  }
  if (fake.qps.size() >= static_cast<std::size_t>(fake.limits.max_qp)) return fail<ibv_qp>(ENOMEM);
  auto* const qp = new Qp(cap.max_send_wr);
  qp->context = pd->context;
  qp->pd = pd;
  qp->send_cq = attributes->send_cq;
  qp->recv_cq = attributes->recv_cq;
  qp->srq = attributes->srq;
  qp->qp_num = 0x100 + ++fake.numbers;
  qp->qp_type = IBV_QPT_RC;
  qp->inline_max = cap.max_inline_data;
  ++static_cast<Pd*>(pd)->users;
  ++static_cast<Cq*>(qp->send_cq)->users;
  ++static_cast<Srq*>(qp->srq)->users;
  fake.qps.push_back(qp);
  ++fake.live;
  return qp;
}
int modify_qp(ibv_qp* ibv, ibv_qp_attr* attributes, int) {
  Qp* const qp = static_cast<Qp*>(ibv);
  FakeDevice& fake = fake_of(qp->context);
  const Lock lock(fake.mutex);
  const ibv_qp_state wanted = attributes->qp_state;
  const bool in_turn = (wanted == IBV_QPS_INIT && qp->state == IBV_QPS_RESET) ||
                       (wanted == IBV_QPS_RTR && qp->state == IBV_QPS_INIT) ||
                       (wanted == IBV_QPS_RTS && qp->state == IBV_QPS_RTR) || wanted == IBV_QPS_ERR;
  if (!in_turn) return EINVAL;
  if (wanted == IBV_QPS_RTR) {
    fake.last_ready = *attributes;
    qp->dest = attributes->dest_qp_num;
    qp->rq_psn = attributes->rq_psn;
  }
  if (wanted == IBV_QPS_RTS) {
    if (attributes->retry_cnt > 6) fake.misuse.emplace_back("retries without end");
    qp->sq_psn = attributes->sq_psn;
  }
  if (wanted == IBV_QPS_ERR) {
    stop_fake_qp(fake, *qp);
  } else {
    qp->state = wanted;
  }
  return 0;
}
int destroy_qp(ibv_qp* ibv) {
  Qp* const qp = static_cast<Qp*>(ibv);
  FakeDevice& fake = fake_of(qp->context);
  const Lock lock(fake.mutex);
  if (of(qp->context).unacknowledged > 0) {
    fake.misuse.emplace_back("it would wait for its events for ever");
  }
  --static_cast<Pd*>(qp->pd)->users;
  --static_cast<Cq*>(qp->send_cq)->users;
  --static_cast<Srq*>(qp->srq)->users;
  std::erase(fake.qps, qp);
  std::erase_if(of(qp->context).events, [&](const ibv_async_event& event) {
    return event.event_type <= IBV_EVENT_PATH_MIG_ERR && event.element.qp == qp;
  });
  --fake.live;
  delete qp;
  return 0;
}

int get_async_event(ibv_context* ibv, ibv_async_event* out) {
  Context& context = of(ibv);
  const Lock lock(context.fake->mutex);
  std::uint64_t value = 0;
  if (::read(context.async_fd, &value, sizeof(value)) != sizeof(value)) return -1;
  if (context.events.empty()) return -1;
  *out = context.events.front();
  context.events.pop_front();
  ++context.unacknowledged;
  return 0;
}
void ack_async_event(ibv_async_event*) {
  const Lock lock(current->mutex);
  for (Context* const context : current->contexts) context->unacknowledged = 0;
}

}  // namespace

ibv_gid_entry gid_entry(std::uint32_t index, ibv_gid_type type, const char* address,
                        std::uint32_t port) {
  ibv_gid_entry entry{};
  entry.gid_index = index;
  entry.gid_type = type;
  entry.port_num = port;
  if (::inet_pton(AF_INET6, address, entry.gid.raw) != 1) std::abort();
  return entry;
}

FakeDevice::FakeDevice() {
  current = this;
  ports.resize(1);
  ports[0].gids = {gid_entry(0, IBV_GID_TYPE_ROCE_V2, "fe80::1"),
                   gid_entry(1, IBV_GID_TYPE_ROCE_V2, "::ffff:10.0.0.1")};
  limits.max_qp = 4096;
  limits.max_qp_wr = 4096;
  limits.max_cqe = 65535;
  limits.max_srq = 16;
  limits.max_srq_wr = 4096;
  limits.max_mr_size = UINT64_MAX;
  limits.max_qp_rd_atom = limits.max_qp_init_rd_atom = 16;
}
FakeDevice::~FakeDevice() {
  if (current == this) current = nullptr;
}

verbs::VerbsApi FakeDevice::api() const {
  verbs::VerbsApi api;
  current->device.transport_type = transport;
  api.get_device_list = list_devices;
  api.free_device_list = [](ibv_device** list) { delete[] list; };
  api.get_device_name = [](ibv_device*) { return current->name.c_str(); };
  api.open_device = open_device;
  api.close_device = close_device;
  api.query_device = query_device;
  api.query_port = query_port;
  api.query_gid_table = query_gids;
  api.alloc_pd = alloc_pd;
  api.dealloc_pd = dealloc_pd;
  api.reg_mr = register_range;
  api.reg_dmabuf_mr = register_dmabuf;
  api.dereg_mr = deregister;
  api.create_comp_channel = create_channel;
  api.destroy_comp_channel = destroy_channel;
  api.create_cq = create_cq;
  api.destroy_cq = destroy_cq;
  api.get_cq_event = get_cq_event;
  api.ack_cq_events = ack_cq_events;
  api.create_srq = create_srq;
  api.destroy_srq = destroy_srq;
  api.create_qp = create_qp;
  api.modify_qp = modify_qp;
  api.destroy_qp = destroy_qp;
  api.get_async_event = get_async_event;
  api.ack_async_event = ack_async_event;
  return api;
}

std::size_t FakeDevice::objects() const { return live; }
std::size_t FakeDevice::queue_pairs() const {
  const Lock lock(mutex);
  return qps.size();
}

void FakeDevice::raise(ibv_event_type type, std::uint8_t port) {
  const Lock lock(mutex);
  for (Context* const context : contexts) {
    ibv_async_event event{};
    event.event_type = type;
    event.element.port_num = port;
    raise_fake_event(*context, event);
  }
}

void FakeDevice::break_queue_pairs() {
  const Lock lock(mutex);
  for (Qp* const qp : qps) break_fake_qp(*this, *qp, IBV_EVENT_QP_FATAL);
}

void FakeDevice::inject(const std::vector<std::byte>& message) {
  const Lock lock(mutex);
  for (Qp* const qp : qps) deliver_fake_message(*qp, message.data(), message.size());
}

}  // namespace kvl::test
