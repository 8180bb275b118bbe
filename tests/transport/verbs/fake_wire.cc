// What the device in memory does with work requests.
#include "tests/transport/verbs/fake_wire.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace kvl::test {
namespace {

using Lock = std::lock_guard<std::mutex>;
using Mr = FakeDevice::Mr;
using Cq = FakeDevice::Cq;
using Srq = FakeDevice::Srq;
using Qp = FakeDevice::Qp;
using Context = FakeDevice::Context;

FakeDevice& fake_of(ibv_context* context) { return *static_cast<Context*>(context)->fake; }

void signal(int fd) {
  const std::uint64_t one = 1;
  if (::write(fd, &one, sizeof(one)) != sizeof(one)) std::abort();
}

void push(Cq& cq, const ibv_wc& entry) {
  FakeDevice& fake = fake_of(cq.context);
  if (cq.entries.full()) {
    fake.misuse.emplace_back("a completion queue overflows");
    return;
  }
  cq.entries.push(entry);
  if (!cq.armed) return;
  cq.armed = false;
  signal(cq.channel->fd);
}

void complete(Qp& qp, const Qp::Send& send, ibv_wc_status status) {
  if (status == IBV_WC_SUCCESS && (send.request.send_flags & IBV_SEND_SIGNALED) == 0) return;
  ibv_wc entry{};
  entry.wr_id = send.request.wr_id;
  entry.status = status;
  entry.qp_num = qp.qp_num;
  push(*static_cast<Cq*>(qp.send_cq), entry);
}

Mr* find_mr(FakeDevice& fake, std::uint32_t key, const ibv_pd* pd) {
  for (Mr* const mr : fake.mrs) {
    if (mr->rkey == key && mr->pd == pd) return mr;
  }
  return nullptr;
}

// Null: no such range, or not with this right.
std::byte* reach(FakeDevice& fake, std::uint32_t key, const ibv_pd* pd, std::uint64_t address,
                 std::uint64_t bytes, unsigned int right) {
  Mr* const mr = find_mr(fake, key, pd);
  if (mr == nullptr || (mr->access & right) != right || address < mr->base || bytes > mr->length ||
      address - mr->base > mr->length - bytes) {
    return nullptr;
  }
  return static_cast<std::byte*>(mr->addr) + (address - mr->base);
}

Qp* find_qp(FakeDevice& fake, std::uint32_t number) {
  for (Qp* const qp : fake.qps) {
    if (qp->qp_num == number) return qp;
  }
  return nullptr;
}

std::byte* local_range(FakeDevice& fake, Qp& qp, Qp::Send& send) {
  if ((send.request.send_flags & IBV_SEND_INLINE) != 0) return send.inlined.data();
  const bool written = send.request.opcode == IBV_WR_RDMA_READ;
  const auto right = static_cast<unsigned int>(written ? IBV_ACCESS_LOCAL_WRITE : 0);
  return reach(fake, send.range.lkey, qp.pd, send.range.addr, send.range.length, right);
}

// False: not now, there is no receive buffer.
bool perform(FakeDevice& fake, Qp& qp, Qp::Send& send, ibv_wc_status& status) {
  status = IBV_WC_SUCCESS;
  if (std::count(fake.fail_at.begin(), fake.fail_at.end(), send.number) > 0) {
    status = fake.fail_status;
    return true;
  }
  Qp* const target = find_qp(fake, qp.dest);
  const bool connected = target != nullptr && target->dest == qp.qp_num &&
                         target->rq_psn == qp.sq_psn &&
                         (target->state == IBV_QPS_RTR || target->state == IBV_QPS_RTS);
  if (!connected) {
    status = IBV_WC_RETRY_EXC_ERR;
    return true;
  }
  const std::uint32_t bytes = send.request.num_sge == 0 ? 0 : send.range.length;
  std::byte* const here = bytes == 0 ? nullptr : local_range(fake, qp, send);
  if (bytes > 0 && here == nullptr) {
    status = IBV_WC_LOC_PROT_ERR;
    return true;
  }
  if (send.request.opcode == IBV_WR_SEND) return deliver_fake_message(*target, here, bytes);
  if (bytes == 0) return true;  // no key is looked at
  const bool write = send.request.opcode == IBV_WR_RDMA_WRITE;
  std::byte* const there =
      reach(fake, send.request.wr.rdma.rkey, target->pd, send.request.wr.rdma.remote_addr, bytes,
            write ? IBV_ACCESS_REMOTE_WRITE : IBV_ACCESS_REMOTE_READ);
  if (there == nullptr) {
    status = IBV_WC_REM_ACCESS_ERR;
    break_fake_qp(fake, *target, IBV_EVENT_QP_ACCESS_ERR);
    return true;
  }
  std::memcpy(write ? there : here, write ? here : there, bytes);
  return true;
}

// Up to `count` requests of one queue pair. How many were done.
std::uint32_t run(FakeDevice& fake, Qp& qp, std::uint32_t count) {
  std::uint32_t done = 0;
  while (!fake.silent && qp.state == IBV_QPS_RTS && !qp.sends.empty() && done < count) {
    Qp::Send& send = qp.sends.front();
    ibv_wc_status status = IBV_WC_SUCCESS;
    if (!perform(fake, qp, send, status)) break;
    complete(qp, send, status);
    qp.sends.pop();
    ++done;
    if (status != IBV_WC_SUCCESS) stop_fake_qp(fake, qp);
  }
  return done;
}

void run_all(FakeDevice& fake, std::uint32_t count) {
  for (bool any = true; any && count > 0;) {
    any = false;
    for (std::size_t i = 0; i < fake.qps.size() && count > 0; ++i) {
      const std::uint32_t done = run(fake, *fake.qps[i], 1);
      any = any || done > 0;
      count -= done;
    }
  }
}

// A completion of a send frees its place in the queue, and those of all before it.
void release_until(FakeDevice& fake, const ibv_wc& entry) {
  Qp* const qp = find_qp(fake, entry.qp_num);
  if (qp == nullptr) return;
  while (!qp->ids.empty()) {
    const std::uint64_t id = qp->ids.front();
    qp->ids.pop();
    if (id == entry.wr_id) return;
  }
}

int take(FakeDevice& fake, Qp& qp, const ibv_send_wr& request) {
  const auto refused = std::find(fake.refuse_at.begin(), fake.refuse_at.end(), fake.requests);
  if (refused != fake.refuse_at.end()) {
    fake.refuse_at.erase(refused);
    return fake.refuse_error != 0 ? fake.refuse_error : ENOMEM;
  }
  if (qp.state != IBV_QPS_RTS && qp.state != IBV_QPS_ERR) return EINVAL;
  if (qp.ids.full()) {
    fake.misuse.emplace_back("a send queue overflows");
    return ENOMEM;
  }
  Qp::Send send;
  send.request = request;
  send.number = fake.requests++;
  if (request.num_sge > 0) send.range = *request.sg_list;
  if ((request.send_flags & IBV_SEND_INLINE) != 0) {
    if (send.range.length > qp.inline_max) return EINVAL;
    std::memcpy(send.inlined.data(), reinterpret_cast<const void*>(send.range.addr),
                send.range.length);
    ++fake.inlined;
  }
  if ((request.send_flags & IBV_SEND_SIGNALED) != 0) ++fake.signalled;
  qp.ids.push(request.wr_id);
  if (qp.state == IBV_QPS_ERR) {
    if (fake.flushes) complete(qp, send, IBV_WC_WR_FLUSH_ERR);
  } else {
    qp.sends.push(send);
  }
  return 0;
}

}  // namespace

bool deliver_fake_message(Qp& qp, const std::byte* bytes, std::size_t count) {
  Srq& srq = *static_cast<Srq*>(qp.srq);
  FakeDevice& fake = fake_of(qp.context);
  if (srq.buffers.empty()) return false;
  const Srq::Buffer buffer = srq.buffers.front();
  srq.buffers.pop();
  ibv_wc entry{};
  entry.wr_id = buffer.id;
  entry.qp_num = qp.qp_num;
  entry.opcode = IBV_WC_RECV;
  entry.byte_len = static_cast<std::uint32_t>(count);
  std::byte* const there = reach(fake, buffer.range.lkey, qp.pd, buffer.range.addr,
                                 buffer.range.length, IBV_ACCESS_LOCAL_WRITE);
  if (there == nullptr || count > buffer.range.length) {
    entry.status = IBV_WC_LOC_LEN_ERR;
  } else {
    std::memcpy(there, bytes, count);
  }
  push(*static_cast<Cq*>(qp.recv_cq), entry);
  return true;
}

void raise_fake_event(Context& context, const ibv_async_event& event) {
  context.events.push_back(event);
  signal(context.async_fd);
}

void stop_fake_qp(FakeDevice& fake, Qp& qp) {
  qp.state = IBV_QPS_ERR;
  for (; !qp.sends.empty(); qp.sends.pop()) {
    if (fake.flushes) complete(qp, qp.sends.front(), IBV_WC_WR_FLUSH_ERR);
  }
}

void break_fake_qp(FakeDevice& fake, Qp& qp, ibv_event_type why) {
  if (qp.state == IBV_QPS_ERR) return;
  stop_fake_qp(fake, qp);
  ibv_async_event event{};
  event.event_type = why;
  event.element.qp = &qp;
  raise_fake_event(*static_cast<Context*>(qp.context), event);
}

int poll_fake_cq(ibv_cq* ibv, int count_max, ibv_wc* out) {
  FakeDevice& fake = fake_of(ibv->context);
  const Lock lock(fake.mutex);
  if (fake.pace > 0) run_all(fake, fake.pace);
  Cq& cq = *static_cast<Cq*>(ibv);
  int count = 0;
  for (; count < count_max && !cq.entries.empty(); ++count) {
    out[count] = cq.entries.front();
    cq.entries.pop();
    if (out[count].opcode != IBV_WC_RECV) release_until(fake, out[count]);
  }
  return count;
}

int arm_fake_cq(ibv_cq* ibv, int) {
  FakeDevice& fake = fake_of(ibv->context);
  const Lock lock(fake.mutex);
  static_cast<Cq*>(ibv)->armed = true;
  run_all(fake, UINT32_MAX);
  return 0;
}

int post_fake_send(ibv_qp* ibv, ibv_send_wr* request, ibv_send_wr** first_bad) {
  Qp& qp = *static_cast<Qp*>(ibv);
  FakeDevice& fake = fake_of(qp.context);
  const Lock lock(fake.mutex);
  std::uint64_t length = 0;
  int error = 0;
  for (; request != nullptr && error == 0; request = request->next) {
    *first_bad = request;
    error = take(fake, qp, *request);
    if (error == 0) ++length;
  }
  ++fake.chains;
  fake.largest_chain = std::max(fake.largest_chain, length);
  if (fake.pace == 0) run_all(fake, UINT32_MAX);
  return error;
}

int post_fake_receive(ibv_srq* ibv, ibv_recv_wr* request, ibv_recv_wr** first_bad) {
  Srq& srq = *static_cast<Srq*>(ibv);
  FakeDevice& fake = fake_of(srq.context);
  const Lock lock(fake.mutex);
  for (; request != nullptr; request = request->next) {
    *first_bad = request;
    if (srq.buffers.full()) {
      fake.misuse.emplace_back("a receive queue overflows");
      return ENOMEM;
    }
    srq.buffers.push({request->wr_id, *request->sg_list});
  }
  if (fake.pace == 0) run_all(fake, UINT32_MAX);
  return 0;
}

}  // namespace kvl::test
