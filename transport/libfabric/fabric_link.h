// An opened libfabric device: one endpoint of type FI_EP_RDM with its completion queue and address
// vector, all of them the owner thread's. Nothing here counts on any order between operations: a
// note is posted when every write of its batch is complete.
//
//   fabric_link.cc         batches: post, cancel, poll, sleep
//   fabric_operations.cc   what is posted, and what has completed
//   fabric_peers.cc        offers, hello, loss, close
//   fabric_move.cc         another endpoint: peers that live go with us
//   fabric_counts.cc       notes of small batches, which wait for immediates at the target
//   fabric_names.cc        memory: add, remove, export, import
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/slot_map.h"
#include "transport/fabric/peer_rounds.h"
#include "transport/fabric/remote_memories.h"
#include "transport/libfabric/fabric_batch.h"
#include "transport/libfabric/fabric_device.h"
#include "transport/libfabric/fabric_endpoint.h"
#include "transport/libfabric/fabric_faults.h"
#include "transport/libfabric/fabric_memory.h"

namespace kvl::libfabric {

class FabricLink final : public Link {
 public:
  static Result<std::unique_ptr<Link>> open(const FabricApi& api, const FoundDevice& found,
                                            const FabricConfig& config, const LinkContext& context);
  ~FabricLink() override;
  FabricLink(const FabricLink&) = delete;
  FabricLink& operator=(const FabricLink&) = delete;

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
  int wait_fd() const override { return endpoint_->wait_fd(); }
  bool arm() override;
  std::int64_t next_timer_ns() const override;
  void visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const override;

 private:
  struct Address {
    fi_addr_t address = FI_ADDR_UNSPEC;
    std::uint32_t uses = 0;
  };
  enum class Posted : std::uint8_t { yes, again, failed };
  // What the next operation of a batch moves: pieces side by side on both sides are one.
  struct Stretch {
    std::uint64_t here = 0, there = 0, bytes = 0;
    std::uint32_t local_region = 0, remote_region = 0;
  };

  FabricLink(const FoundDevice& found, const FabricConfig& config, const LinkContext& context,
             std::unique_ptr<Endpoint> endpoint, std::uint32_t version);
  Status prepare();
  void say_what_lacks() const;

  // fabric_link.cc
  Peer* find_peer(PeerId id);
  void finish(Peer& peer, std::uint32_t batch, Code code);
  bool runnable(const Peer& peer, BatchSlot& slot);
  // No further read or write may be posted until one has completed.
  bool full() const {
    return operations_.full() ||
           under_way_bytes_ >= static_cast<std::uint64_t>(config_.inflight_bytes);
  }
  void speak(Peer& peer, std::int64_t now_ns, std::uint32_t& budget);
  void look_at(Peer& peer, std::int64_t now_ns, std::uint32_t& budget, EventSink& sink);
  static std::int64_t next_look_ns(const Peer& peer);

  // fabric_operations.cc
  void run_batches(Peer& peer, std::uint32_t& budget);
  bool run_batch(Peer& peer, std::uint32_t batch, std::uint32_t& budget);
  Stretch take_stretch(BatchSlot& slot, BatchCursor& cursor);
  Posted post_note(Peer& peer, std::uint32_t batch);
  Posted post_next(Peer& peer, std::uint32_t batch, bool more);
  Posted post_message(Peer& peer, MessageType type, std::uint64_t value,
                      std::span<const std::byte> note = {}, std::uint32_t batch = kNoSlot);
  Posted outcome(ssize_t result, Peer& peer, std::uint32_t operation, bool more);
  void ring_doorbell();
  void drain_completions();
  void take_entry(const fi_cq_data_entry& entry);
  void complete(Operation& operation, const fi_cq_err_entry* error);
  void post_receives();
  void take_messages(EventSink& sink);
  void fail_batch(Peer& peer, BatchSlot& slot, Code code);

  // fabric_peers.cc
  bool take_message(const PeerMessage& message, EventSink& sink);
  void hear_hello(Peer& peer, std::uint64_t flags);
  void come_up(Peer& peer);
  void greet(Peer& peer, std::int64_t now_ns);
  void probe(Peer& peer, std::int64_t now_ns);
  void lose(Peer& peer, Fault fault, int error, int provider_error);
  void begin_close(Peer& peer, Code code);
  bool step_closing(Peer& peer, std::int64_t now_ns, EventSink& sink);
  bool fence(Peer& peer, std::int64_t now_ns);
  void say(const Peer& peer, MessageType type, std::uint64_t value);
  bool is_clear(const Peer& peer) const;
  void hear_clear(const Peer& from);
  void forbid(const std::string& address);
  void say_goodbye_to_all();
  Status settle(Peer& peer, std::span<const std::byte> address);
  Status insert_address(Peer& peer);
  void remove_address(Peer& peer);

  // fabric_counts.cc
  void grant(Peer& peer);
  void take_back_grant(Peer& peer);
  void hear_counts(Peer& peer, const PeerMessage& message);
  void count_immediate(std::uint64_t data);
  void note_counted(Peer& peer, std::uint32_t slot);
  bool take_counted_note(Peer& peer, const PeerMessage& message);
  void show_counted(EventSink& sink);
  bool still_counts(const Peer& peer) const;
  static bool owes_counts(const Peer& peer);
  void say_counts(Peer& peer);
  void choose_counting(Peer& peer, BatchSlot& slot);
  void end_counting(Peer& peer, BatchSlot& slot, Code code);

  // fabric_move.cc
  void step_move(std::int64_t now_ns);
  void step_held(Peer& peer);
  void hear_quiet(Peer& peer, std::uint64_t messages);
  void hear_offer(Peer& peer, const PeerOffer& offer);
  void replace_endpoint();
  void end_everything();
  void rejoin(Peer& peer);
  PeerOffer offer_to(Peer& peer) const;
  void say_offer(Peer& peer);

  // fabric_names.cc
  void queue_forgotten();

  const Device device_;
  const FabricConfig config_;
  const LinkContext context_;
  const bool efa_, direct_;
  const bool delivery_complete_;
  const std::uint32_t version_;
  std::unique_ptr<Endpoint> endpoint_;
  FabricMemory memory_;
  std::uint64_t op_bytes_max_ = 0;

  // Messages: the first tx_depth to be sent, then those that arrive.
  std::vector<PeerMessage> messages_;
  Fid<fid_mr> messages_mr_;
  void* messages_desc_ = nullptr;
  SlotPool<Operation> operations_;
  std::unique_ptr<Operation[]> receives_;
  std::vector<std::uint32_t> arrived_;  // a ring of receives with a message
  std::size_t arrived_first_ = 0, arrived_count_ = 0;
  std::vector<std::uint32_t> to_post_;  // receives that the provider does not have

  SlotMap<std::unique_ptr<Peer>> peers_;
  PeerRounds<Peer> rounds_;
  std::map<std::string, Address> addresses_;  // by what fi_getname said
  // Removed without the owner's word that it has let go: inserted again they would let in what is
  // still under way from before. The oldest first.
  std::deque<std::string> forbidden_;
  RemoteMemories remotes_;
  FabricMemory::Forgotten forgotten_;
  BatchTable<BatchSlot> batches_;
  // Notes that have all their immediates, in that order; channels by number.
  struct CountedNote {
    std::uint64_t peer;
    std::uint32_t slot;
  };
  std::vector<CountedNote> counted_notes_;
  std::map<std::uint32_t, Peer*> channels_;
  std::uint32_t immediates_left_ = 0;  // room in the queue that no peer has yet
  std::uint32_t under_way_ = 0;        // operations
  std::uint32_t unsettled_ = 0;        // peers that connect or close
  std::uint64_t under_way_bytes_ = 0;
  bool give_up_ = false;                    // a closing peer's operations will never end
  std::int64_t move_until_ns_ = INT64_MAX;  // those who live are asked to be quiet
  std::uint32_t endpoints_ = 0;             // before this one
  bool drained_ = false;                    // everything that had arrived by this poll was taken
  bool stalled_ = false;                    // the provider could not take an operation
  std::uint64_t doorbell_for_ = 0;  // the peer whose last operation said that more would follow

  Counter written_bytes_, read_bytes_, notes_sent_, notes_received_;
  Counter notes_counted_, immediates_;
  Counter posted_, again_, doorbells_, endpoints_replaced_, peers_moved_, peers_up_;
  CountByFault faults_;
  CountByStranger strangers_;
};

}  // namespace kvl::libfabric
