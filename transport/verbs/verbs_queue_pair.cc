// States of a queue pair, and posting.
#include "transport/verbs/verbs_queue_pair.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <span>

#include "transport/base/crypto.h"

namespace kvl::verbs {
namespace {

constexpr std::uint8_t kHopLimit = 64;
// How long a sender waits when we have no receive buffer: 0.64 ms.
constexpr std::uint8_t kNotReadyTimer = 12;
// For ever. A peer that lives and does not poll is for its heartbeat to judge.
constexpr std::uint8_t kNotReadyRetries = 7;

std::uint32_t random_psn() {
  std::uint32_t psn = 0;
  crypto::random(std::as_writable_bytes(std::span(&psn, 1)));
  return psn & 0xFFFFFF;
}

}  // namespace

Chain::Chain() {
  for (std::size_t i = 0; i < kMax; ++i) requests_.at(i).sg_list = &ranges_.at(i);
}

ibv_send_wr& Chain::add(const Sent& sent, const BatchCursor& before) {
  ibv_send_wr& request = requests_.at(count_);
  planned_.at(count_) = {sent, before};
  ++count_;
  request.num_sge = 0;
  request.send_flags = 0;
  request.opcode = IBV_WR_RDMA_WRITE;
  request.wr.rdma = {};
  return request;
}

QueuePair::QueuePair(const OpenPort& port, std::uint32_t tag)
    : port_(port), tag_(tag), first_psn_(random_psn()), ring_(std::bit_floor(port.sq_depth())) {}

Result<std::unique_ptr<QueuePair>> QueuePair::open(const OpenPort& port, std::uint32_t tag) {
  std::unique_ptr<QueuePair> self(new QueuePair(port, tag));
  KVL_TRY(self->make());
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_INIT;
  attributes.pkey_index = static_cast<std::uint16_t>(port.config().pkey_index);
  attributes.port_num = port.number();
  attributes.qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
  KVL_TRY(self->modify(attributes,
                       IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS,
                       "initialise RDMA queue pair"));
  return self;
}

Status QueuePair::make() {
  ibv_qp_init_attr attributes{};
  attributes.send_cq = attributes.recv_cq = port_.cq();
  attributes.srq = port_.srq();
  attributes.qp_type = IBV_QPT_RC;
  attributes.cap.max_send_wr = static_cast<std::uint32_t>(ring_.size());
  attributes.cap.max_send_sge = 1;
  attributes.cap.max_inline_data = static_cast<std::uint32_t>(port_.config().inline_bytes);
  ibv_qp* qp = port_.api().create_qp(port_.pd(), &attributes);
  if (qp == nullptr && errno == EINVAL) {  // not every device has as much inline data, or any
    attributes.cap.max_inline_data = 0;
    qp = port_.api().create_qp(port_.pd(), &attributes);
  }
  if (qp == nullptr) return verbs_error("create RDMA queue pair: see ulimit -l", errno);
  qp_ = Owned<ibv_qp>(qp, {port_.api().destroy_qp});
  inline_bytes_ = std::min(attributes.cap.max_inline_data,
                           static_cast<std::uint32_t>(port_.config().inline_bytes));
  return {};
}

Status QueuePair::modify(ibv_qp_attr& attributes, int mask, const char* what) {
  const int error = port_.api().modify_qp(qp_.get(), &attributes, mask);
  if (error == 0) return {};
  return {error == EINVAL ? Code::invalid_argument : Code::unavailable, what, error};
}

QueuePairAddress QueuePair::address() const {
  const PortAddress& port = port_.address();
  QueuePairAddress address;
  address.number = number();
  address.first_psn = first_psn_;
  std::memcpy(address.gid.data(), port.gid.raw, address.gid.size());
  address.lid = port.lid;
  address.mtu = static_cast<std::uint8_t>(port.mtu);
  address.reads_served_max = port_.reads_served_max();
  return address;
}

Status QueuePair::connect(const QueuePairAddress& remote) {
  const VerbsConfig& config = port_.config();
  const PortAddress& local = port_.address();
  ibv_qp_attr ready{};
  ready.qp_state = IBV_QPS_RTR;
  ready.path_mtu = std::min(local.mtu, static_cast<ibv_mtu>(remote.mtu));
  ready.dest_qp_num = remote.number;
  ready.rq_psn = remote.first_psn;
  ready.max_dest_rd_atomic = port_.reads_served_max();
  ready.min_rnr_timer = kNotReadyTimer;
  ready.ah_attr.port_num = port_.number();
  ready.ah_attr.sl = static_cast<std::uint8_t>(config.service_level);
  ready.ah_attr.dlid = remote.lid;
  // Packets of RoCE always have a global header, those of InfiniBand between subnets.
  constexpr std::size_t kPrefix = 8;
  const bool other_subnet = std::memcmp(local.gid.raw, remote.gid.data(), kPrefix) != 0;
  if (local.ethernet || (other_subnet && local.gid_index >= 0)) {
    ready.ah_attr.is_global = 1;
    std::memcpy(ready.ah_attr.grh.dgid.raw, remote.gid.data(), remote.gid.size());
    ready.ah_attr.grh.sgid_index = static_cast<std::uint8_t>(local.gid_index);
    ready.ah_attr.grh.hop_limit = kHopLimit;
    ready.ah_attr.grh.traffic_class = static_cast<std::uint8_t>(config.traffic_class);
  }
  KVL_TRY(modify(ready,
                 IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                     IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER,
                 "connect RDMA queue pair to this address"));
  ibv_qp_attr send{};
  send.qp_state = IBV_QPS_RTS;
  send.timeout = static_cast<std::uint8_t>(config.ack_timeout);
  send.retry_cnt = static_cast<std::uint8_t>(config.retries);
  send.rnr_retry = kNotReadyRetries;
  send.sq_psn = first_psn_;
  send.max_rd_atomic = std::min(port_.reads_max(), remote.reads_served_max);
  can_read_ = send.max_rd_atomic > 0;
  return modify(send,
                IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                    IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC,
                "open RDMA queue pair for sending");
}

void QueuePair::stop() {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  // What a device does not flush then is abandoned when the queue pair is destroyed.
  [[maybe_unused]] const int error = port_.api().modify_qp(qp_.get(), &attributes, IBV_QP_STATE);
}

QueuePair::Posted QueuePair::post(Chain& chain) {
  const std::uint32_t count = chain.count_;
  chain.signal_last();
  for (std::uint32_t i = 0; i < count; ++i) {
    ibv_send_wr& request = chain.requests_.at(i);
    request.wr_id = std::uint64_t{tag_} << 32 | (next_ + i);
    request.next = i + 1 < count ? &chain.requests_.at(i + 1) : nullptr;
  }
  ibv_send_wr* first_bad = nullptr;
  const int error = std::abs(::ibv_post_send(qp_.get(), chain.requests_.data(), &first_bad));
  Posted posted{count, error};
  if (error != 0) {
    const std::ptrdiff_t taken = first_bad - chain.requests_.data();
    posted.count = first_bad == nullptr ? 0 : static_cast<std::uint32_t>(taken);
  }
  for (std::uint32_t i = 0; i < posted.count; ++i) at(next_ + i) = chain.planned_.at(i).sent;
  next_ += posted.count;
  if (posted.count > 0) {
    ends_silent_ = (chain.requests_.at(posted.count - 1).send_flags & IBV_SEND_SIGNALED) == 0;
  }
  return posted;
}

}  // namespace kvl::verbs
