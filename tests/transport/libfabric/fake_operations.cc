// Posting, doorbells and completion queues.
#include <unistd.h>

#include <algorithm>

#include "tests/transport/libfabric/fake_objects.h"

namespace kvl::test::fake {
namespace {

constexpr std::byte kMark{0xC7};

Ep& ep_of(fid_ep* ep) { return *reinterpret_cast<Ep*>(ep); }

struct Request {
  Op::Kind kind = Op::Kind::write;
  const iovec* local = nullptr;
  std::size_t locals = 0, remotes = 1;
  void* const* desc = nullptr;
  fi_addr_t to = 0;
  void* context = nullptr;
  std::uint64_t remote = 0, remote_bytes = 0, key = 0;
  std::uint64_t data = 0;
  std::uint64_t flags = 0;
};

// "" or what an EFA refuses.
std::string wrong_with(const Ep& ep, const Request& request) {
  const FakeOptions& options = ep.domain->world->options;
  const bool rma = request.kind != Op::Kind::send;
  if (request.locals != 1 || request.remotes != 1) return "more than one iov";
  const iovec& local = *request.local;
  if (rma && request.remote_bytes != local.iov_len) return "both sides differ in length";
  if (rma && local.iov_len > options.rma_bytes_max) return "longer than the device's RMA";
  if (!rma && ep.domain->direct && local.iov_len > options.message_bytes_max) {
    return "longer than the device's message";
  }
  if (request.context == nullptr) return "no context";
  if (request.to >= ep.av->entries.size() || !ep.av->entries[request.to].second) {
    return "to an address that is not in the vector";
  }
  if ((request.flags & FI_REMOTE_CQ_DATA) != 0 &&
      (options.cq_data_bytes == 0 || (request.data >> (8 * options.cq_data_bytes)) != 0)) {
    return "an immediate that is too large";
  }
  if ((request.flags & FI_DELIVERY_COMPLETE) != 0 && ep.domain->direct) {
    return "efa-direct has no FI_DELIVERY_COMPLETE";
  }
  const Mr* const mr = request.desc == nullptr ? nullptr : static_cast<Mr*>(*request.desc);
  if (!ep.domain->needs_desc) return "";
  if (mr == nullptr || mr->domain != ep.domain) return "without the descriptor of its memory";
  const auto* const data = static_cast<const std::byte*>(local.iov_base);
  if (data < mr->data || data + local.iov_len > mr->data + mr->bytes) {
    return "outside the memory of its descriptor";
  }
  return "";
}

// Where the device finds the local bytes.
std::byte* reach(const Ep& ep, const Request& request) {
  auto* const local = static_cast<std::byte*>(request.local->iov_base);
  if (!ep.domain->needs_desc) return local;
  const Mr& mr = *static_cast<const Mr*>(*request.desc);
  return mr.reach + (local - mr.data);
}

std::shared_ptr<Op> make_op(Ep& ep, const Request& request) {
  auto op = std::make_shared<Op>();
  op->ep = &ep;
  op->from = ep.address;
  op->to = ep.av->entries[request.to].first;
  op->kind = request.kind;
  op->context = request.context;
  op->local = reach(ep, request);
  op->bytes = request.local->iov_len;
  op->mr = ep.domain->needs_desc ? static_cast<Mr*>(*request.desc) : nullptr;
  op->remote = request.remote;
  op->key = request.key;
  op->has_data = (request.flags & FI_REMOTE_CQ_DATA) != 0;
  op->data = static_cast<std::uint32_t>(request.data);
  return op;
}

ssize_t post_now(Ep& ep, const Request& request, bool more) {
  Op op;
  op.ep = &ep;
  op.from = ep.address;
  op.to = ep.av->entries[request.to].first;
  op.kind = request.kind;
  op.context = request.context;
  op.local = reach(ep, request);
  op.bytes = request.local->iov_len;
  op.remote = request.remote;
  op.key = request.key;
  op.has_data = (request.flags & FI_REMOTE_CQ_DATA) != 0;
  op.data = static_cast<std::uint32_t>(request.data);
  ep.domain->world->launch_now(op);
  ep.domain->world->run_longest = std::max(ep.domain->world->run_longest, ++ep.unrung_now);
  if (!more) ep.unrung_now = 0;
  return 0;
}

ssize_t post(Ep& ep, const Request& request) {
  FakeProvider& world = *ep.domain->world;
  const auto guard = world.lock();
  const bool rma = request.kind != Op::Kind::send;
  if (rma) {
    const std::uint64_t number = world.rma_tries++;
    const auto& at = world.again_at;
    if (std::find(at.begin(), at.end(), number) != at.end()) return -FI_EAGAIN;
  }
  if (!world.usable(ep.address.place)) return -FI_EIO;
  if (const std::string wrong = wrong_with(ep, request); !wrong.empty()) {
    world.violate("a post " + wrong);
    return -FI_EINVAL;
  }
  if (ep.ops.size() >= world.options.tx_size || world.chance(world.options.again)) {
    return -FI_EAGAIN;
  }
  ++(rma ? world.rma_posts : world.message_posts);
  const bool more = (request.flags & FI_MORE) != 0;
  if (world.options.instant) return post_now(ep, request, more);
  std::shared_ptr<Op> op = make_op(ep, request);
  if (op->mr != nullptr) ++op->mr->uses;
  mark(world, *ep.domain, op->context);
  ep.ops.insert(op);
  ep.unrung.push_back(std::move(op));
  if (!more) ep.ring();
  return 0;
}

ssize_t post_rma(fid_ep* fid, const fi_msg_rma* message, std::uint64_t flags, Op::Kind kind) {
  return post(ep_of(fid), {kind, message->msg_iov, message->iov_count, message->rma_iov_count,
                           message->desc, message->addr, message->context, message->rma_iov->addr,
                           message->rma_iov->len, message->rma_iov->key, message->data, flags});
}

ssize_t post_message(fid_ep* fid, const fi_msg* message, std::uint64_t flags) {
  return post(ep_of(fid), {Op::Kind::send, message->msg_iov, message->iov_count, 1, message->desc,
                           message->addr, message->context, 0, 0, 0, 0, flags});
}

ssize_t post_receive(fid_ep* fid, void* buffer, std::size_t bytes, void* desc, fi_addr_t,
                     void* context) {
  Ep& ep = ep_of(fid);
  FakeProvider& world = *ep.domain->world;
  const auto guard = world.lock();
  if (ep.receives.size() >= world.options.rx_size) return -FI_EAGAIN;
  if (ep.domain->needs_desc && desc == nullptr) {
    world.violate("a receive without the descriptor of its memory");
    return -FI_EINVAL;
  }
  if (!world.options.instant) mark(world, *ep.domain, context);
  ep.receives.push_back({buffer, bytes, context});
  return 0;
}

std::size_t entry_bytes(fi_cq_format format) {
  return format == FI_CQ_FORMAT_DATA ? sizeof(fi_cq_data_entry) : sizeof(fi_cq_msg_entry);
}

ssize_t read_queue(fid_cq* fid, void* out, std::size_t count) {
  Cq& cq = *reinterpret_cast<Cq*>(fid);
  FakeProvider& world = *cq.domain->world;
  const auto guard = world.lock();
  if (!world.options.instant) world.tick();
  if (cq.ep != nullptr && !world.usable(cq.ep->address.place)) {
    // The device is gone: what it had is flushed.
    const auto ops = std::exchange(cq.ep->ops, {});
    for (const std::shared_ptr<Op>& op : ops) {
      op->status = 1;  // FLUSHED
      op->flushed = true;
      world.finish(op);
    }
  }
  if (cq.overrun) return -FI_EOVERRUN;
  std::size_t n = 0;
  for (; n < count && !cq.entries.empty() && cq.entries.front().status == 0; ++n) {
    const std::size_t bytes = entry_bytes(cq.format);
    std::memcpy(static_cast<std::byte*>(out) + n * bytes, &cq.entries.front().entry, bytes);
    cq.entries.pop_front();
  }
  if (cq.entries.empty() && cq.fd >= 0) {
    std::uint64_t value = 0;
    [[maybe_unused]] const ssize_t result = ::read(cq.fd, &value, sizeof(value));
  }
  if (n > 0) return static_cast<ssize_t>(n);
  return cq.entries.empty() ? -FI_EAGAIN : -FI_EAVAIL;
}

ssize_t read_error(fid_cq* fid, fi_cq_err_entry* out, std::uint64_t) {
  Cq& cq = *reinterpret_cast<Cq*>(fid);
  const auto guard = cq.domain->world->lock();
  if (cq.entries.empty() || cq.entries.front().status == 0) return -FI_EAGAIN;
  const Cq::Entry& entry = cq.entries.front();
  out->op_context = entry.entry.op_context;
  out->flags = entry.entry.flags;
  out->err = FI_EIO;  // what it is the status says
  out->prov_errno = entry.status;
  cq.entries.pop_front();
  return 1;
}

}  // namespace

void mark(FakeProvider&, const Domain& domain, void* context) {
  if (domain.needs_context) std::memset(context, static_cast<int>(kMark), sizeof(fi_context2));
}
void check_mark(FakeProvider& world, const Domain& domain, const void* context) {
  if (!domain.needs_context) return;
  const auto* const bytes = static_cast<const std::byte*>(context);
  if (!std::all_of(bytes, bytes + sizeof(fi_context2), [](std::byte b) { return b == kMark; })) {
    world.violate("a context was touched while its operation was under way");
  }
}

bool Av::knows(const Address& address) const {
  return std::find(entries.begin(), entries.end(), std::pair{address, true}) != entries.end();
}

void Cq::push(const Entry& entry) {
  if (entries.size() >= size && !overrun) {
    domain->world->violate("a completion queue overran");
    overrun = true;
  }
  entries.push_back(entry);
  const std::uint64_t one = 1;
  if (fd >= 0) [[maybe_unused]]
    const ssize_t result = ::write(fd, &one, sizeof(one));
}

bool Ep::take(const void* data, std::size_t bytes) {
  if (receives.empty()) return false;
  const Receive receive = receives.front();
  receives.pop_front();
  if (!domain->world->options.instant) check_mark(*domain->world, *domain, receive.context);
  if (bytes > 0) std::memcpy(receive.buffer, data, std::min(bytes, receive.bytes));
  cq->push({{receive.context, FI_RECV | FI_MSG, bytes, nullptr, 0}});
  return true;
}

void Ep::ring() {
  FakeProvider& world = *domain->world;
  world.run_longest = std::max(world.run_longest, unrung.size());
  const auto rung = std::exchange(unrung, {});
  for (const std::shared_ptr<Op>& op : rung) world.launch(op);
}

fi_ops_msg* message_ops() {
  static fi_ops_msg ops = [] {
    fi_ops_msg made{};
    made.size = sizeof(made);
    made.sendmsg = post_message;
    made.recv = post_receive;
    return made;
  }();
  return &ops;
}

fi_ops_rma* rma_ops() {
  static fi_ops_rma ops = [] {
    fi_ops_rma made{};
    made.size = sizeof(made);
    made.writemsg = [](fid_ep* ep, const fi_msg_rma* message, std::uint64_t flags) {
      return post_rma(ep, message, flags, Op::Kind::write);
    };
    made.readmsg = [](fid_ep* ep, const fi_msg_rma* message, std::uint64_t flags) {
      return post_rma(ep, message, flags, Op::Kind::read);
    };
    return made;
  }();
  return &ops;
}

fi_ops_cq* cq_ops() {
  static fi_ops_cq ops = [] {
    fi_ops_cq made{};
    made.size = sizeof(made);
    made.read = read_queue;
    made.readerr = read_error;
    return made;
  }();
  return &ops;
}

}  // namespace kvl::test::fake
