// The null transport.
#include "bench/support/null_transport.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "transport/base/unique_fd.h"

namespace kvl::bench {
namespace {

constexpr std::uint32_t kBatchesMax = 1024;

Blob blob_of(std::uint64_t value) {
  Blob blob(sizeof(value));
  std::memcpy(blob.data(), &value, sizeof(value));
  return blob;
}

class NullLink final : public Link {
 public:
  explicit NullLink(const Device& device)
      : device_(device), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    events_.reserve(kBatchesMax + 64);
  }
  const Device& device() const override { return device_; }

  Result<PeerId> open_peer(PeerRole) override { return PeerId{++last_id_}; }
  Result<Blob> offer(PeerId peer) override { return blob_of(peer.value); }
  Status accept(PeerId peer, std::span<const std::byte>) override {
    queue(Event::Kind::peer_up, peer, Code::ok);
    return {};
  }
  void close_peer(PeerId peer) override { queue(Event::Kind::peer_down, peer, Code::aborted); }
  void on_control(PeerId, std::span<const std::byte>) override {}

  Result<MemoryId> add_memory(const Memory&) override { return MemoryId{1}; }
  Status remove_memory(MemoryId) override { return {}; }
  Result<Blob> export_memory(MemoryId memory, PeerId) override { return blob_of(memory.value); }
  Result<RemoteId> import_memory(PeerId, std::span<const std::byte>) override {
    return RemoteId{1};
  }
  void drop_memory(RemoteId) override {}

  Status post(const Batch& batch) override {
    if (events_.size() >= kBatchesMax) return {Code::exhausted, "null link"};
    std::uint64_t bytes = 0;
    for (const PageOp& op : batch.ops) bytes += op.total_bytes();
    if (!batch.ops.empty() && batch.end != 0) {
      bytes -= batch.ops.back().total_bytes() - batch.end;
    }
    Event& event = events_.emplace_back();
    event.peer = batch.peer;
    event.ticket = batch.ticket;
    event.bytes_done = bytes - batch.begin;
    return {};
  }
  Status cancel(Ticket) override { return {Code::not_found, "everything is done"}; }
  std::size_t poll(std::span<Event> events) override {
    const std::size_t count = std::min(events.size(), events_.size());
    const auto end = events_.begin() + static_cast<std::ptrdiff_t>(count);
    std::copy(events_.begin(), end, events.begin());
    events_.erase(events_.begin(), end);
    return count;
  }
  int wait_fd() const override { return wake_.get(); }
  bool arm() override { return events_.empty(); }
  std::int64_t next_timer_ns() const override { return INT64_MAX; }

 private:
  void queue(Event::Kind kind, PeerId peer, Code code) {
    Event& event = events_.emplace_back();
    event.kind = kind;
    event.peer = peer;
    event.code = code;
  }
  const Device device_;
  const UniqueFd wake_;  // never written
  std::vector<Event> events_;
  std::uint64_t last_id_ = 0;
};

class NullTransport final : public Transport {
 public:
  std::string_view name() const override { return "null"; }
  int rank() const override { return 1; }
  std::vector<Device> devices() override {
    Device device;
    device.name = "null0";
    device.domain = "null";
    device.caps = Cap::write | Cap::read | Cap::notify | Cap::host_memory | Cap::inter_node;
    device.limits.batches_inflight_max = kBatchesMax;
    device.fence = Fence::immediate;
    return {device};
  }
  std::string why_unusable() override { return {}; }
  Result<std::unique_ptr<Link>> open(const Device& device, const LinkContext&) override {
    std::unique_ptr<Link> link = std::make_unique<NullLink>(device);
    return link;
  }
};

}  // namespace

std::unique_ptr<Transport> make_null_transport() { return std::make_unique<NullTransport>(); }

}  // namespace kvl::bench
