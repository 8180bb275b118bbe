// A transport whose Links do what the test says: a batch ends, a peer is lost, a peer is let go of,
// each when the test wants it. Two engines over it talk, but no byte moves.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvl/transport.h"

namespace kvl::test {

class ScriptedLink final : public Link {
 public:
  explicit ScriptedLink(Device device) : device_(std::move(device)) {}

  // --- the script
  bool hold_closed = false;   // peer_down of a closed peer waits for let_go()
  bool refuse_peers = false;  // no peer can be opened
  bool hold_batches = false;  // batches of a lost peer end with end_lost(), after its peer_down

  std::size_t posted() const { return posted_.size(); }
  std::size_t peers() const { return peers_.size(); }
  // The oldest batch ends.
  void finish(Code code) {
    end(posted_.front(), code);
    posted_.pop_front();
  }
  // Every peer is lost, as if its connection had broken at our end.
  void lose(Code code) {
    for (const PeerId peer : std::exchange(peers_, {})) lost(peer, code);
  }
  // Closed peers are out now.
  void let_go(Code code) {
    for (const PeerId peer : std::exchange(closing_, {})) down(peer, code);
  }
  void end_lost(Code code) {
    for (const Posted& batch : std::exchange(lost_, {})) end(batch, code);
  }

  // --- Link
  const Device& device() const override { return device_; }
  Result<PeerId> open_peer(PeerRole) override {
    if (refuse_peers) return Status{Code::unavailable, "as the test says"};
    return PeerId{++ids_};
  }
  Result<Blob> offer(PeerId) override { return Blob(1); }
  Status accept(PeerId peer, std::span<const std::byte>) override {
    peers_.push_back(peer);
    Event event;
    event.kind = Event::Kind::peer_up;
    event.peer = peer;
    events_.push_back(event);
    return {};
  }
  void close_peer(PeerId peer) override {
    std::erase(peers_, peer);
    if (!hold_closed) return lost(peer, Code::aborted);
    end_batches(peer, Code::aborted);
    closing_.push_back(peer);
  }
  void on_control(PeerId, std::span<const std::byte>) override {}
  Result<MemoryId> add_memory(const Memory&) override { return MemoryId{++ids_}; }
  Status remove_memory(MemoryId) override { return {}; }
  Result<Blob> export_memory(MemoryId, PeerId) override { return Blob(1); }
  Result<RemoteId> import_memory(PeerId, std::span<const std::byte>) override {
    return RemoteId{++ids_};
  }
  void drop_memory(RemoteId) override {}
  Status post(const Batch& batch) override {
    posted_.push_back({batch.ticket, batch.peer});
    return {};
  }
  Status cancel(Ticket ticket) override {
    const auto found = std::ranges::find(posted_, ticket, &Posted::ticket);
    if (found == posted_.end()) return {Code::not_found, "batch"};
    end(*found, Code::aborted);
    posted_.erase(found);
    return {};
  }
  std::size_t poll(std::span<Event> events) override {
    std::size_t count = 0;
    for (; count < events.size() && !events_.empty(); ++count) {
      events[count] = events_.front();
      events_.pop_front();
    }
    return count;
  }
  int wait_fd() const override { return -1; }
  bool arm() override { return events_.empty(); }
  std::int64_t next_timer_ns() const override { return INT64_MAX; }

 private:
  struct Posted {
    Ticket ticket;
    PeerId peer;
  };

  void end(const Posted& batch, Code code) {
    Event event;
    event.code = code;
    event.peer = batch.peer;
    event.ticket = batch.ticket;
    events_.push_back(event);
  }
  void end_batches(PeerId peer, Code code) {
    std::erase_if(posted_, [&](const Posted& batch) {
      if (batch.peer != peer) return false;
      hold_batches ? lost_.push_back(batch) : end(batch, code);
      return true;
    });
  }
  void down(PeerId peer, Code code) {
    Event event;
    event.kind = Event::Kind::peer_down;
    event.code = code;
    event.peer = peer;
    events_.push_back(event);
  }
  void lost(PeerId peer, Code code) {
    end_batches(peer, code);
    down(peer, code);
  }

  const Device device_;
  std::atomic<std::uint64_t> ids_{0};  // memory is added by other threads, too
  std::vector<PeerId> peers_, closing_;
  std::deque<Posted> posted_;
  std::vector<Posted> lost_;
  std::deque<Event> events_;
};

// The devices of one scripted transport.
struct ScriptedDevices {
  std::string transport = "scripted";
  int rank = 50;
  Fence fence = Fence::immediate;
  std::vector<std::string> names;
  std::string domain;  // of all of them; "": each its own, so that a rail is joined with its like

  static ScriptedDevices alike(std::size_t count, Fence fence) {
    ScriptedDevices devices;
    devices.fence = fence;
    for (std::size_t i = 0; i < count; ++i) devices.names.push_back("scripted" + std::to_string(i));
    return devices;
  }
};

class ScriptedTransport final : public Transport {
 public:
  // Links are appended to `links` as they are opened; they live as long as the engine.
  ScriptedTransport(ScriptedDevices devices, std::vector<ScriptedLink*>* links)
      : devices_(std::move(devices)), links_(links) {}

  std::string_view name() const override { return devices_.transport; }
  int rank() const override { return devices_.rank; }
  std::vector<Device> devices() override {
    std::vector<Device> all;
    for (const std::string& name : devices_.names) {
      Device& device = all.emplace_back();
      device.name = name;
      device.domain = devices_.domain.empty() ? name : devices_.domain;
      device.caps = Cap::write | Cap::read | Cap::notify | Cap::host_memory;
      device.fence = devices_.fence;
    }
    return all;
  }
  std::string why_unusable() override { return {}; }
  Result<std::unique_ptr<Link>> open(const Device& device, const LinkContext&) override {
    auto link = std::make_unique<ScriptedLink>(device);
    links_->push_back(link.get());
    return std::unique_ptr<Link>(std::move(link));
  }

 private:
  const ScriptedDevices devices_;
  std::vector<ScriptedLink*>* const links_;
};

}  // namespace kvl::test
