// Packets: segments of different operations pass each other, and the target's device has its say.
#include <algorithm>

#include "tests/transport/libfabric/fake_objects.h"

namespace kvl::test {

using fake::Cq;
using fake::Ep;
using fake::Mr;
using fake::Op;

namespace {

constexpr std::uint64_t kHeaderBytes = 64;
constexpr std::uint64_t kLostTicks = 60;  // until a device gives up
constexpr std::uint64_t kPacketsPerTick = 16;

// Statuses of the device.
constexpr int kBadAddress = 7, kBadQueuePair = 9, kNotReady = 10, kUnresponsive = 13,
              kUnknownPeer = 14, kUnreachable = 15;

}  // namespace

FakeProvider::FakeProvider(FakeOptions given, FakeWire* wire)
    : options(std::move(given)), random_(options.seed), wire_(wire) {}

bool FakeProvider::chance(double p) {
  return p > 0 && std::uniform_real_distribution<double>(0, 1)(random_) < p;
}

FakePlace FakeProvider::place(std::uint32_t host, std::uint32_t device) {
  return wire_ != nullptr ? wire_->place(host, device) : FakePlace{host, device, 0};
}

bool FakeProvider::usable(const FakePlace& at) {
  if (dead_devices_.contains({at.host, at.device})) return false;
  return wire_ == nullptr || wire_->usable(at);
}

void FakeProvider::cut(std::uint32_t from, std::uint32_t to, Path path) {
  const Lock guard = lock();
  cuts_[{from, to}] = path;
}
void FakeProvider::heal() {
  const Lock guard = lock();
  cuts_.clear();
}
void FakeProvider::kill_device(std::uint32_t host, std::uint32_t device) {
  const Lock guard = lock();
  dead_devices_.insert({host, device});
}
void FakeProvider::revive_device(std::uint32_t host, std::uint32_t device) {
  const Lock guard = lock();
  dead_devices_.erase({host, device});
}
std::vector<std::string> FakeProvider::violations() {
  const Lock guard = lock();
  return violations_;
}
std::size_t FakeProvider::waiting() {
  const Lock guard = lock();
  std::size_t count = 0;
  for (const Ep* const ep : endpoints) count += ep->unrung.size() + ep->unrung_now;
  return count;
}

void FakeProvider::inject(const std::vector<std::byte>& bytes) {
  const Lock guard = lock();
  for (Ep* const ep : endpoints) ep->take(bytes.data(), bytes.size());
}
void FakeProvider::inject_immediate(std::uint32_t value) {
  const Lock guard = lock();
  for (Ep* const ep : endpoints) deliver_immediate(*ep, value);
}

void FakeProvider::after(std::uint64_t ticks, std::function<void()> action) {
  packets_.push_back({tick_ + ticks, ++packet_numbers_, std::move(action)});
  std::push_heap(packets_.begin(), packets_.end());
}

void FakeProvider::tick() {
  ++tick_;
  for (std::uint64_t n = 0; n < kPacketsPerTick && !packets_.empty(); ++n) {
    if (packets_.front().due > tick_) return;
    std::pop_heap(packets_.begin(), packets_.end());
    const Packet packet = std::move(packets_.back());
    packets_.pop_back();
    packet.action();
  }
}

void FakeProvider::carry(const FakePlace& from, const FakePlace& to, std::uint64_t bytes,
                         std::function<void()> arrived, std::function<void()> lost) {
  if (wire_ != nullptr) {
    const auto locked = [this](std::function<void()> action) {
      return [this, action = std::move(action)] {
        const Lock guard = lock();
        action();
      };
    };
    wire_->carry(from, to, bytes, locked(std::move(arrived)), locked(std::move(lost)));
    return;
  }
  const auto cut = cuts_.find({from.host, to.host});
  if (cut != cuts_.end() && cut->second == Path::swallowed) return;
  if ((cut != cuts_.end() && cut->second == Path::lost) || !usable(to)) {
    return after(kLostTicks, std::move(lost));
  }
  std::uint64_t ticks = 1 + below(options.delay_max);
  if (chance(options.late)) ticks += below(std::uint64_t{16} * options.delay_max);
  after(ticks, std::move(arrived));
}

// Writes and reads in segments, each on its own way.
void FakeProvider::launch(const std::shared_ptr<Op>& op) {
  if (op->kind != Op::Kind::send && fail_status != 0) {
    op->status = std::exchange(fail_status, 0);
    op->left = 1;
    return after(1, [this, op] { segment_done(op, op->status); });
  }
  const std::uint64_t count =
      op->kind == Op::Kind::send
          ? 1
          : std::max<std::uint64_t>(
                1, (op->bytes + options.segment_bytes - 1) / options.segment_bytes);
  op->left = op->placed = count;
  if (op->kind == Op::Kind::send) return send_message(op);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t offset = i * options.segment_bytes;
    send_segment(op, offset, std::min(options.segment_bytes, op->bytes - offset));
  }
}

void FakeProvider::send_segment(const std::shared_ptr<Op>& op, std::uint64_t offset,
                                std::uint64_t bytes) {
  const auto lost = [this, op] { segment_done(op, kUnresponsive); };
  if (op->kind == Op::Kind::read) {
    carry(
        op->from.place, op->to.place, kHeaderBytes,
        [this, op, offset, bytes] { read_back(op, offset, bytes); }, lost);
    return;
  }
  // The device fetches some bytes at once and others as late as it may.
  std::vector<std::byte> early;
  if (below(2) == 0) early.assign(op->local + offset, op->local + offset + bytes);
  carry(
      op->from.place, op->to.place, kHeaderBytes + bytes,
      [this, op, offset, bytes, early = std::move(early)] {
        if (op->flushed || (early.empty() && bytes > 0 && op->ep == nullptr)) return;  // never left
        Ep* target = nullptr;
        std::byte* there = nullptr;
        int status = admit(*op, target);
        if (status == 0) status = admit_memory(*op, *target, there);
        if (status == 0) {
          const std::byte* const from = early.empty() ? op->local + offset : early.data();
          std::copy_n(from, bytes, there + offset);
          if (--op->placed == 0 && op->has_data) {
            const std::uint32_t data = op->data;
            const fake::Address address = target->address;
            // Its own bytes are there; what else is, nobody says.
            carry(
                op->to.place, op->to.place, 0,
                [this, address, data] {
                  for (Ep* const ep : endpoints) {
                    if (ep->address == address) return deliver_immediate(*ep, data);
                  }
                },
                [] {});
          }
        }
        answer(op, status);
      },
      lost);
}

void FakeProvider::deliver_immediate(Ep& target, std::uint32_t value) {
  ++immediates;
  void* context = nullptr;
  if (!options.unsolicited) {
    if (target.receives.empty()) return violate("an immediate met no receive");
    context = target.receives.front().context;
    target.receives.pop_front();
  }
  target.cq->push({{context, FI_REMOTE_CQ_DATA | FI_REMOTE_WRITE | FI_RMA, 0, nullptr, value}});
}

void FakeProvider::read_back(const std::shared_ptr<Op>& op, std::uint64_t offset,
                             std::uint64_t bytes) {
  Ep* target = nullptr;
  std::byte* there = nullptr;
  int status = admit(*op, target);
  if (status == 0) status = admit_memory(*op, *target, there);
  if (status != 0) return answer(op, status);
  std::vector<std::byte> payload(there + offset, there + offset + bytes);
  carry(
      op->to.place, op->from.place, kHeaderBytes + bytes,
      [this, op, offset, payload = std::move(payload)] {
        if (op->ep == nullptr) return;
        std::copy(payload.begin(), payload.end(), op->local + offset);
        segment_done(op, 0);
      },
      [this, op] { segment_done(op, kUnresponsive); });
}

void FakeProvider::send_message(const std::shared_ptr<Op>& op) {
  std::vector<std::byte> bytes(op->local, op->local + op->bytes);
  carry(
      op->from.place, op->to.place, kHeaderBytes + op->bytes,
      [this, op, bytes = std::move(bytes)] {
        Ep* target = nullptr;
        const int status = admit(*op, target);
        if (status != 0) return answer(op, status);
        if (target->take(bytes.data(), bytes.size())) return answer(op, 0);
        if (++op->tries > options.receive_retries) return answer(op, kNotReady);
        send_message(op);
      },
      [this, op] { segment_done(op, kUnresponsive); });
}

void FakeProvider::answer(const std::shared_ptr<Op>& op, int status) {
  const auto cut = cuts_.find({op->from.place.host, op->to.place.host});
  if (cut != cuts_.end() && cut->second == Path::answers_lost) {
    return after(kLostTicks, [this, op] { segment_done(op, kUnresponsive); });
  }
  carry(
      op->to.place, op->from.place, kHeaderBytes, [this, op, status] { segment_done(op, status); },
      [this, op] { segment_done(op, kUnresponsive); });
}

void FakeProvider::segment_done(const std::shared_ptr<Op>& op, int status) {
  if (op->status == 0) op->status = status;
  if (op->left > 0 && --op->left == 0) finish(op);
}

// The provider lets go of the context and of the memory.
void FakeProvider::finish(const std::shared_ptr<Op>& op) {
  Ep* const ep = std::exchange(op->ep, nullptr);
  if (ep == nullptr) return;
  fake::check_mark(*this, *ep->domain, op->context);
  ep->ops.erase(op);
  std::erase(ep->unrung, op);
  if (op->mr != nullptr) --op->mr->uses;
  const std::uint64_t flags = op->kind == Op::Kind::send    ? FI_SEND | FI_MSG
                              : op->kind == Op::Kind::write ? FI_WRITE | FI_RMA
                                                            : FI_READ | FI_RMA;
  ep->cq->push({{op->context, flags, 0, nullptr, 0}, op->status});
}

Ep* FakeProvider::find_endpoint(const Op& op) {
  for (Ep* const ep : endpoints) {
    if (ep->address == op.to) return ep;
  }
  return nullptr;
}

int FakeProvider::admit(const Op& op, Ep*& target) {
  const auto cut = cuts_.find({op.from.place.host, op.to.place.host});
  if (cut != cuts_.end() && cut->second == Path::refused) return kUnreachable;
  target = find_endpoint(op);
  if (target == nullptr) return kBadQueuePair;
  // The fabric efa makes itself known; efa-direct leaves that to us.
  if (target->domain->direct && !target->av->knows(op.from)) return kUnknownPeer;
  return 0;
}

int FakeProvider::admit_memory(const Op& op, const Ep& target, std::byte*& there) {
  const auto known = target.domain->keys.find(op.key);
  if (known == target.domain->keys.end()) return kBadAddress;
  const Mr& mr = *known->second;
  const std::uint64_t needed = op.kind == Op::Kind::write ? FI_REMOTE_WRITE : FI_REMOTE_READ;
  const std::uint64_t offset = op.remote - reinterpret_cast<std::uintptr_t>(mr.data);
  if ((mr.access & needed) == 0 || offset > mr.bytes || op.bytes > mr.bytes - offset) {
    return kBadAddress;
  }
  there = mr.reach + offset;
  return 0;
}

// Everything in one call, for whoever measures the caller.
void FakeProvider::launch_now(Op& op) {
  Ep* target = nullptr;
  std::byte* there = nullptr;
  int status = admit(op, target);
  if (status == 0 && op.kind != Op::Kind::send) status = admit_memory(op, *target, there);
  if (status == 0) {
    if (op.kind == Op::Kind::write) std::copy_n(op.local, op.bytes, there);
    if (op.kind == Op::Kind::read) std::copy_n(there, op.bytes, op.local);
    if (op.kind == Op::Kind::send && !target->take(op.local, op.bytes)) status = kNotReady;
    if (op.has_data) deliver_immediate(*target, op.data);
  }
  op.ep->cq->push({{op.context, FI_RMA, 0, nullptr, 0}, status});
}

}  // namespace kvl::test
