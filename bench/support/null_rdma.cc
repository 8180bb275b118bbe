// Objects of libibverbs that do next to nothing.
#include "bench/support/null_rdma.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

namespace kvl::bench {
namespace {

constexpr std::size_t kEntries = 1 << 16;  // a power of two, more than any queue has

template <typename T>
struct Ring {
  std::vector<T> items = std::vector<T>(kEntries);
  std::size_t first = 0, next = 0;
  void push(const T& item) { items[next++ % kEntries] = item; }
  bool empty() const { return first == next; }
  T& pop() { return items[first++ % kEntries]; }
};
struct Cq : ibv_cq {
  Cq() : ibv_cq{} {}
  Ring<ibv_wc> entries;
};
struct Srq : ibv_srq {
  Srq() : ibv_srq{} {}
  Ring<std::pair<std::uint64_t, std::uint64_t>> buffers;  // id, address
};
struct Qp : ibv_qp {
  std::uint32_t dest = 0;
};

ibv_device device{};
std::vector<Qp*> qps;  // by number

void deliver(std::uint32_t number, const ibv_sge& message) {
  Qp* const qp = qps.at(number);
  Srq* const srq = static_cast<Srq*>(qp->srq);
  if (srq->buffers.empty()) return;
  const auto [id, address] = srq->buffers.pop();
  std::memcpy(reinterpret_cast<void*>(address), reinterpret_cast<const void*>(message.addr),
              message.length);
  ibv_wc entry{};
  entry.wr_id = id;
  entry.qp_num = number;
  entry.byte_len = message.length;
  static_cast<Cq*>(qp->recv_cq)->entries.push(entry);
}

int post_send(ibv_qp* ibv, ibv_send_wr* request, ibv_send_wr**) {
  Cq& cq = *static_cast<Cq*>(ibv->send_cq);
  for (; request != nullptr; request = request->next) {
    if (request->opcode == IBV_WR_SEND) deliver(static_cast<Qp*>(ibv)->dest, *request->sg_list);
    if ((request->send_flags & IBV_SEND_SIGNALED) == 0) continue;
    ibv_wc entry{};
    entry.wr_id = request->wr_id;
    entry.qp_num = ibv->qp_num;
    cq.entries.push(entry);
  }
  return 0;
}
int post_receive(ibv_srq* ibv, ibv_recv_wr* request, ibv_recv_wr**) {
  for (; request != nullptr; request = request->next) {
    static_cast<Srq*>(ibv)->buffers.push({request->wr_id, request->sg_list->addr});
  }
  return 0;
}
int poll_cq(ibv_cq* ibv, int count_max, ibv_wc* out) {
  Cq& cq = *static_cast<Cq*>(ibv);
  int count = 0;
  while (count < count_max && !cq.entries.empty()) out[count++] = cq.entries.pop();
  return count;
}

ibv_context* open_device(ibv_device*) {
  auto* const context = new ibv_context{};
  context->device = &device;
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return nullptr;
  ::close(ends[1]);
  context->async_fd = ends[0];
  context->ops.poll_cq = poll_cq;
  context->ops.post_send = post_send;
  context->ops.post_srq_recv = post_receive;
  context->ops.req_notify_cq = [](ibv_cq*, int) { return 0; };
  return context;
}
int close_device(ibv_context* context) {
  ::close(context->async_fd);
  delete context;
  return 0;
}
int query_device(ibv_context*, ibv_device_attr* out) {
  *out = {};
  out->phys_port_cnt = 1;
  out->max_srq = 1;
  out->max_cqe = out->max_qp_wr = out->max_srq_wr = kEntries / 2;
  out->max_mr_size = UINT64_MAX;
  out->max_qp_rd_atom = out->max_qp_init_rd_atom = 16;
  return 0;
}
int query_port(ibv_context*, std::uint8_t, ibv_port_attr* out) {
  out->state = IBV_PORT_ACTIVE;
  out->link_layer = IBV_LINK_LAYER_INFINIBAND;
  out->active_mtu = IBV_MTU_4096;
  out->max_msg_sz = 1U << 31;
  return 0;
}
ibv_mr* register_range(ibv_pd* pd, void*, std::size_t, std::uint64_t, unsigned int) {
  auto* const mr = new ibv_mr{};
  mr->pd = pd;
  return mr;
}
ibv_qp* create_qp(ibv_pd*, ibv_qp_init_attr* attributes) {
  auto* const qp = new Qp{};
  qp->context = attributes->send_cq->context;
  qp->send_cq = attributes->send_cq;
  qp->recv_cq = attributes->recv_cq;
  qp->srq = attributes->srq;
  qp->qp_num = static_cast<std::uint32_t>(qps.size());
  qps.push_back(qp);
  return qp;
}
int modify_qp(ibv_qp* qp, ibv_qp_attr* attributes, int mask) {
  if ((mask & IBV_QP_DEST_QPN) != 0) static_cast<Qp*>(qp)->dest = attributes->dest_qp_num;
  return 0;
}
template <typename Object, typename Ibv>
int destroy(Ibv* object) {
  delete static_cast<Object*>(object);
  return 0;
}

void fill_objects(verbs::VerbsApi& api) {
  api.alloc_pd = [](ibv_context* context) {
    auto* const pd = new ibv_pd{};
    pd->context = context;
    return pd;
  };
  api.dealloc_pd = destroy<ibv_pd, ibv_pd>;
  api.reg_mr = register_range;
  api.dereg_mr = destroy<ibv_mr, ibv_mr>;
  api.create_comp_channel = [](ibv_context* context) {
    auto* const channel = new ibv_comp_channel{};
    channel->fd = ::fcntl(context->async_fd, F_DUPFD_CLOEXEC, 0);
    return channel;
  };
  api.destroy_comp_channel = [](ibv_comp_channel* channel) {
    ::close(channel->fd);
    return destroy<ibv_comp_channel>(channel);
  };
  api.create_cq = [](ibv_context* context, int, void*, ibv_comp_channel*, int) -> ibv_cq* {
    auto* const cq = new Cq;
    cq->context = context;
    return cq;
  };
  api.destroy_cq = destroy<Cq, ibv_cq>;
  api.get_cq_event = [](ibv_comp_channel*, ibv_cq**, void**) { return -1; };
  api.ack_cq_events = [](ibv_cq*, unsigned int) {};
  api.create_srq = [](ibv_pd* pd, ibv_srq_init_attr*) -> ibv_srq* {
    auto* const srq = new Srq;
    srq->context = pd->context;
    return srq;
  };
  api.destroy_srq = destroy<Srq, ibv_srq>;
  api.create_qp = create_qp;
  api.modify_qp = modify_qp;
  api.destroy_qp = destroy<Qp, ibv_qp>;
}

}  // namespace

verbs::VerbsApi null_rdma_api() {
  verbs::VerbsApi api;
  api.get_device_list = [](int* count) {
    *count = 1;
    return new ibv_device* [1] { &device };
  };
  api.free_device_list = [](ibv_device** list) { delete[] list; };
  api.get_device_name = [](ibv_device*) { return "null0"; };
  api.open_device = open_device;
  api.close_device = close_device;
  api.query_device = query_device;
  api.query_port = query_port;
  api.query_gid_table = [](ibv_context*, ibv_gid_entry*, std::size_t, std::uint32_t, std::size_t) {
    return ssize_t{0};
  };
  api.get_async_event = [](ibv_context*, ibv_async_event*) { return -1; };
  api.ack_async_event = [](ibv_async_event*) {};
  fill_objects(api);
  return api;
}

}  // namespace kvl::bench
