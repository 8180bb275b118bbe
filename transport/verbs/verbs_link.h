// An opened RDMA port: one reliable queue pair for each peer, one completion queue and one shared
// receive queue for all of them, all the owner thread's. A queue pair keeps its order, so a note is
// a message behind the writes of its batch, in the same chain.
//
//   verbs_link.cc      batches: post, cancel, poll, sleep
//   verbs_requests.cc  what is posted, and what has completed
//   verbs_peers.cc     offers, hello, messages, loss, close
//   verbs_events.cc    what the device says beside completions; metrics
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/slot_map.h"
#include "transport/fabric/peer_rounds.h"
#include "transport/fabric/remote_memories.h"
#include "transport/verbs/verbs_batch.h"
#include "transport/verbs/verbs_faults.h"
#include "transport/verbs/verbs_memory.h"

namespace kvl::verbs {

class VerbsLink final : public Link {
 public:
  static Result<std::unique_ptr<Link>> open(const VerbsApi& api, const FoundPort& found,
                                            const VerbsConfig& config, const LinkContext& context);
  ~VerbsLink() override;
  VerbsLink(const VerbsLink&) = delete;
  VerbsLink& operator=(const VerbsLink&) = delete;

  const Device& device() const override { return device_; }
  Result<PeerId> open_peer(PeerRole role) override;
  Result<Blob> offer(PeerId id) override;
  Status accept(PeerId id, std::span<const std::byte> remote_offer) override;
  void close_peer(PeerId id) override;
  void on_control(PeerId id, std::span<const std::byte> bytes) override;

  Result<MemoryId> add_memory(const Memory& memory) override;
  Status remove_memory(MemoryId id) override { return memory_.remove(id); }
  Result<Blob> export_memory(MemoryId id, PeerId peer) override;
  Result<RemoteId> import_memory(PeerId peer, std::span<const std::byte> blob) override;
  void drop_memory(RemoteId id) override { remotes_.drop(id); }

  Status post(const Batch& batch) override;
  Status cancel(Ticket ticket) override;
  std::size_t poll(std::span<Event> events) override;
  int wait_fd() const override { return port_->wait_fd(); }
  bool arm() override;
  std::int64_t next_timer_ns() const override;
  void visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const override;

 private:
  struct Arrived {
    std::uint32_t buffer = 0;
    std::uint32_t bytes = 0;
    std::uint32_t queue_pair = 0;
  };

  // What the last run of a batch named: mostly the next one names it again.
  struct Regions {
    std::uint32_t local_region = UINT32_MAX, remote_region = UINT32_MAX;
    const LocalMemory* local = nullptr;
    const RemoteMemory* remote = nullptr;
    std::uint64_t inline_bytes = 0;
  };

  VerbsLink(const FoundPort& found, const VerbsConfig& config, const LinkContext& context,
            std::unique_ptr<OpenPort> port);
  Status prepare();

  // verbs_link.cc
  Peer* find_peer(PeerId id);
  void finish(Peer& peer, std::uint32_t batch, Code code);
  void fail_batch(Peer& peer, BatchSlot& slot, Code code);
  bool has_work(const Peer& peer);
  void look_at(Peer& peer, std::int64_t now_ns, std::uint32_t& budget, EventSink& sink);
  static std::int64_t next_look_ns(const Peer& peer);

  // verbs_requests.cc
  bool full() const {
    return under_way_bytes_ >= static_cast<std::uint64_t>(config_.inflight_bytes);
  }
  std::uint32_t room(const Peer& peer) const;
  void run_peer(Peer& peer, std::int64_t now_ns, std::uint32_t& budget);
  void plan_owed(Peer& peer, std::uint32_t room);
  void plan_batches(Peer& peer, std::uint32_t room);
  void plan_batch(Peer& peer, std::uint32_t batch, std::uint32_t room);
  bool enter_regions(Peer& peer, const BatchSlot& slot, Regions& regions);
  bool plan_run(Peer& peer, std::uint32_t batch, Regions& regions);
  void plan_message(Peer& peer, Sent::Kind kind, const Owed& what,
                    std::span<const std::byte> note = {}, std::uint32_t batch = kNoSlot);
  bool post_chain(Peer& peer);
  void take_back(Peer& peer, std::uint32_t from);
  bool drain_completions();
  void complete_send(const ibv_wc& completion);
  void settle(Peer& peer, const Sent& sent, bool ok, Code code);
  void complete_receive(const ibv_wc& completion);
  void post_receives();

  // verbs_peers.cc
  void take_messages(EventSink& sink);
  bool take_message(const PeerMessage& message, std::uint32_t queue_pair, EventSink& sink);
  void queue_forgotten();
  bool say(Peer& peer, MessageType type);
  void greet(Peer& peer);
  void come_up(Peer& peer);
  void lose(Peer& peer, Fault fault, int status, std::uint32_t vendor_error);
  void begin_close(Peer& peer, Code code);
  bool step_closing(Peer& peer, std::int64_t now_ns, EventSink& sink);
  void say_goodbye_to_all();

  // verbs_events.cc
  bool take_device_events();
  void lose_all(Fault fault, int event);
  void hear_event(const ibv_async_event& event);

  const Device device_;
  const VerbsConfig config_;
  const LinkContext context_;
  std::unique_ptr<OpenPort> port_;
  VerbsMemory memory_;

  // Messages: the first message_slots_.size() to be sent, then those that arrive.
  std::vector<PeerMessage> messages_;
  Owned<ibv_mr> messages_mr_;
  SlotPool<MessageSlot> message_slots_;
  std::vector<std::uint32_t> to_post_;  // receive buffers that the device does not have
  std::vector<Arrived> arrived_;        // a ring
  std::size_t arrived_first_ = 0, arrived_count_ = 0;

  Chain chain_;
  SlotMap<std::unique_ptr<Peer>> peers_;
  PeerRounds<Peer> rounds_;
  std::unordered_map<std::uint32_t, Peer*> by_tag_;  // of queue pairs
  RemoteMemories remotes_;
  VerbsMemory::Forgotten forgotten_;
  BatchTable<BatchSlot> batches_;
  std::uint32_t tags_ = 0;
  std::uint32_t under_way_ = 0;  // work requests
  std::uint32_t unsettled_ = 0;  // peers that connect or close
  std::uint64_t under_way_bytes_ = 0;
  std::int64_t look_ns_ = 0;  // when the device is next asked for events
  bool stalled_ = false;      // the device could not take a request
  bool gone_ = false;         // the device
  bool ending_ = false;       // the Link: losses are no news

  Counter written_bytes_, read_bytes_, notes_sent_, notes_received_;
  Counter posted_, chains_, again_, completions_, peers_up_;
  CountByFault faults_;
  CountByStranger strangers_;
};

}  // namespace kvl::verbs
