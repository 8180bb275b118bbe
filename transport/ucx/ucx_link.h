// An opened UCX device: one context and worker, both the owner thread's but for registrations. Puts
// end when their bytes have left; a flush for each batch says that they have arrived, and a note is
// sent after it.
//
//   ucx_link.cc         batches: post, cancel, poll, sleep
//   ucx_operations.cc   what is posted, and what has completed
//   ucx_copies.cc       runs as messages, where UCX has no remote memory access
//   ucx_messages.cc     messages: sent, received, held until there is room for their events
//   ucx_peers.cc        offers, hello, loss, close
//   ucx_names.cc        memory: add, remove, export, import
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/slot_map.h"
#include "transport/ucx/ucx_batch.h"
#include "transport/ucx/ucx_config.h"
#include "transport/ucx/ucx_device.h"
#include "transport/ucx/ucx_faults.h"
#include "transport/ucx/ucx_memory.h"

namespace kvl::ucx {

class UcxLink final : public Link {
 public:
  static Result<std::unique_ptr<Link>> open(const UcxApi& api, const FoundDevice& found,
                                            const UcxConfig& config, const LinkContext& context);
  ~UcxLink() override;
  UcxLink(const UcxLink&) = delete;
  UcxLink& operator=(const UcxLink&) = delete;

  const Device& device() const override { return found_.device; }
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
  int wait_fd() const override { return worker_->wait_fd(); }
  bool arm() override;
  std::int64_t next_timer_ns() const override;
  void visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const override;

 private:
  enum class Posted : std::uint8_t { yes, again, failed };
  static constexpr unsigned kMessageId = 1, kRunId = 2;  // of our active messages

  UcxLink(const FoundDevice& found, const UcxConfig& config, const LinkContext& context,
          std::unique_ptr<Worker> worker);
  Status prepare();
  const UcxApi& api() const { return worker_->api(); }

  // ucx_link.cc
  Peer* find_peer(PeerId id);
  void finish(Peer& peer, std::uint32_t batch, Code code);
  bool runnable(const Peer& peer, BatchSlot& slot);
  // No further put or get may be posted until one has completed.
  bool full() const { return operations_.full() || under_way_bytes_ >= inflight_bytes_max_; }
  // … to this peer, for such a batch.
  bool full(const Peer& peer, const BatchSlot& slot) const {
    return full() ||
           (copies_ && slot.batch.direction == Direction::read && peer.asked >= kAnswersMax);
  }
  void run_peers(EventSink& sink);
  void deliver_batches(EventSink& sink);

  // ucx_operations.cc
  void run_batches(Peer& peer, std::uint32_t& budget);
  bool run_batch(Peer& peer, std::uint32_t batch, std::uint32_t& budget);
  Posted conclude(Peer& peer, std::uint32_t batch);
  Posted post_next(Peer& peer, std::uint32_t batch);
  Posted post_rma(Peer& peer, std::uint32_t operation, const LocalMemory& local,
                  const RemoteKey& remote, std::uint64_t offset, std::byte* data);
  Posted post_flush(Peer& peer, std::uint32_t batch);
  std::uint32_t take_operation(Operation::Kind kind, const Peer& peer, std::uint32_t batch);
  ucp_request_param_t params_of(std::uint32_t operation);
  Posted outcome(ucs_status_ptr_t result, Peer& peer, std::uint32_t operation);
  static void on_complete(void* request, ucs_status_t status, void* user_data);
  void progress();
  void drain_completions();
  void complete(std::uint32_t operation, ucs_status_t status);
  void settle(Peer& peer, std::uint32_t batch, const Operation& done, ucs_status_t status);
  void fail_batch(Peer& peer, BatchSlot& slot, Code code);

  // ucx_copies.cc
  Posted post_run(Peer& peer, std::uint32_t operation, RunHeader header,
                  std::span<const std::byte> data);
  Posted post_copy(Peer& peer, std::uint32_t operation, const RemoteName& remote,
                   std::uint64_t offset, std::byte* data);
  Posted post_fence(Peer& peer, std::uint32_t operation, std::uint32_t batch);
  static void ask(Peer& peer, Operation& operation);
  static ucs_status_t on_run(void* link, const void* header, std::size_t header_bytes, void* data,
                             std::size_t bytes, const ucp_am_recv_param_t* param);
  static void take_question(Peer& peer, const RunHeader& run);
  void place(Peer& peer, const RunHeader& run, std::span<const std::byte> data);
  void take_answer(Peer& peer, const RunHeader& run, std::span<const std::byte> data);
  static bool answerable(Peer& peer);
  void answer(Peer& peer, std::uint32_t& budget);
  Posted answer_fence(Peer& peer, const Answer& next);
  Posted answer_fetch(Peer& peer, Answer& next);
  void give_up_answers(Peer& peer);

  // ucx_messages.cc
  Posted post_message(Peer& peer, MessageType type, std::uint64_t value,
                      std::span<const std::byte> note = {}, std::uint32_t batch = kNoSlot);
  static ucs_status_t on_message(void* link, const void* header, std::size_t header_bytes,
                                 void* data, std::size_t bytes, const ucp_am_recv_param_t* param);
  bool may_receive() const { return arrived_count_ < arrived_.size() / 2; }
  void take_messages(EventSink& sink);
  bool take_message(const PeerMessage& message, EventSink& sink);
  bool take_note(Peer& peer, const PeerMessage& message, EventSink& sink);

  // ucx_peers.cc
  static void on_failure(void* peer, ucp_ep_h ep, ucs_status_t status);
  bool connect(Peer& peer);
  void hear_hello(Peer& peer, std::uint64_t flags);
  void come_up(Peer& peer);
  void greet(Peer& peer, std::int64_t now_ns);
  void probe(Peer& peer, std::int64_t now_ns);
  void lose(Peer& peer, Fault fault, ucs_status_t status);
  void begin_close(Peer& peer, Code code);
  bool step_endpoint(Peer& peer, std::int64_t now_ns);
  void finish_all(Peer& peer, bool arrived);
  void step_closing(Peer& peer, std::int64_t now_ns, EventSink& sink);
  void say_goodbye_to_all();

  // ucx_names.cc
  bool unpack(const Peer& peer, RemoteKey& imported);
  void queue_forgotten();

  const FoundDevice found_;
  const UcxConfig config_;
  const LinkContext context_;
  const bool copies_;  // runs are messages
  const std::uint64_t inflight_bytes_max_;
  std::unique_ptr<Worker> worker_;
  Memories memory_;

  // UCX's part of each operation, and the messages of those that send one.
  std::size_t request_stride_ = 0;
  std::vector<std::byte> requests_;
  std::byte* first_request_ = nullptr;
  std::vector<PeerMessage> messages_;
  std::vector<RunHeader> headers_;
  std::uint64_t cookies_ = 0;
  SlotPool<Operation> operations_;
  SlotList completed_;

  std::vector<PeerMessage> arrived_;  // a ring
  std::size_t arrived_first_ = 0, arrived_count_ = 0;

  SlotMap<std::unique_ptr<Peer>> peers_;
  std::vector<Peer*> order_;
  RemoteTable<RemoteKey> remotes_;
  Memories::Forgotten forgotten_;
  BatchTable<BatchSlot> batches_;
  std::size_t turn_ = 0;
  std::uint32_t under_way_ = 0;  // operations
  std::uint32_t unsettled_ = 0;  // peers that connect or close
  std::uint64_t under_way_bytes_ = 0;
  bool stalled_ = false;  // UCX could not take an operation
  bool busy_ = false;     // UCX may have more for us

  Counter written_bytes_, read_bytes_, notes_sent_, notes_received_;
  Counter posted_, again_, flushes_, refused_runs_, forced_;
  CountByFault faults_;
  CountByStranger strangers_;
  BoundedCounts peers_up_;
};

}  // namespace kvl::ucx
