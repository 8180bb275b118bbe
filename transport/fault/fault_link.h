// Wraps any Link or Transport and makes it fail as planned. What it breaks are calls and links,
// never promises: a user of Link must cope with everything done here (swallowed events apart).
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kvl/transport.h"
#include "transport/fault/fault_plan.h"

namespace kvl::fault {

// Same threads as the Link inside, which it owns.
class FaultLink final : public Link {
 public:
  // Opens the inner Link with a control channel and MemoryOps that can fail, too.
  static Result<std::unique_ptr<Link>> open(Transport& inner, const Device& device,
                                            const LinkContext& context,
                                            std::shared_ptr<FaultState> state);

  const Device& device() const override { return inner_->device(); }
  Result<PeerId> open_peer(PeerRole role) override;
  Status secure_peer(PeerId peer, const PeerSecurity& security) override {
    return inner_->secure_peer(peer, security);
  }
  Result<Blob> offer(PeerId peer) override;
  Status accept(PeerId peer, std::span<const std::byte> remote_offer) override;
  void close_peer(PeerId peer) override { inner_->close_peer(peer); }
  void on_control(PeerId peer, std::span<const std::byte> message) override {
    inner_->on_control(peer, message);
  }
  Result<MemoryId> add_memory(const Memory& memory) override;
  Status remove_memory(MemoryId memory) override;
  Result<Blob> export_memory(MemoryId memory, PeerId peer) override;
  Result<RemoteId> import_memory(PeerId peer, std::span<const std::byte> blob) override;
  void drop_memory(RemoteId remote) override { inner_->drop_memory(remote); }
  Status post(const Batch& batch) override;
  Status cancel(Ticket ticket) override;
  std::size_t poll(std::span<Event> events) override;
  int wait_fd() const override { return inner_->wait_fd(); }
  bool arm() override;
  std::int64_t next_timer_ns() const override { return inner_->next_timer_ns(); }
  void visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const override {
    inner_->visit_metrics(visitor, labels);
  }

 private:
  class Control final : public ControlChannel {
   public:
    Control(ControlChannel& inner, FaultState& state) : inner_(inner), state_(state) {}
    Status send(PeerId peer, std::span<const std::byte> message) override;

   private:
    ControlChannel& inner_;
    FaultState& state_;
  };
  class Copies final : public MemoryOps {
   public:
    Copies(MemoryOps& inner, FaultState& state) : inner_(inner), state_(state) {}
    bool direct(MemoryKind kind) const override { return inner_.direct(kind); }
    Result<CopyTicket> copy(std::span<const CopyPiece> pieces) override;
    void poll() override { inner_.poll(); }
    bool done(CopyTicket ticket) override { return inner_.done(ticket); }

   private:
    MemoryOps& inner_;
    FaultState& state_;
  };
  struct Held {
    Event event;
    std::uint32_t polls_left = 0;
  };

  FaultLink(const LinkContext& context, std::shared_ptr<FaultState> state)
      : state_(std::move(state)),
        control_(context.control, *state_),
        copies_(context.memory_ops, *state_) {}
  void take(Event event);

  const std::shared_ptr<FaultState> state_;
  Control control_;
  Copies copies_;
  std::unique_ptr<Link> inner_;
  std::deque<Held> held_;
  std::unordered_map<std::uint64_t, Code> lost_;  // peers we closed, and the code to show
};

// Wraps every Link of a Transport; `state` tells the test what happened.
class FaultTransport final : public Transport {
 public:
  FaultTransport(std::unique_ptr<Transport> inner, std::shared_ptr<FaultState> state)
      : inner_(std::move(inner)), state_(std::move(state)) {}

  std::string_view name() const override { return inner_->name(); }
  int rank() const override { return inner_->rank(); }
  std::vector<Device> devices() override { return inner_->devices(); }
  std::string why_unusable() override { return inner_->why_unusable(); }
  Result<std::unique_ptr<Link>> open(const Device& device, const LinkContext& context) override {
    return FaultLink::open(*inner_, device, context, state_);
  }

 private:
  const std::unique_ptr<Transport> inner_;
  const std::shared_ptr<FaultState> state_;
};

}  // namespace kvl::fault
