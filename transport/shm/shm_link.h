// An opened shm device. One copy moves a page: between our memory and the peer's, which is mapped
// here (SharedBuffer) or reached through the kernel (process_vm_*). The initiator does all of it;
// the target only withdraws.
//
//   shm_link.cc     batches: post, cancel, poll
//   shm_notes.cc    notes, doorbells, sleep
//   shm_connect.cc  sockets: listening, hello, messages, death
//   shm_drain.cc    the end of a peer and of the Link
//   shm_exports.cc  memory: add, remove, export, import
//   shm_move.cc     the copies
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/slot_map.h"
#include "transport/base/unique_fd.h"
#include "transport/shm/shm_batch.h"
#include "transport/shm/shm_memory.h"
#include "transport/shm/shm_peer.h"
#include "transport/shm/shm_refusals.h"
#include "transport/shm/shm_socket.h"

namespace kvl::shm {

struct ShmConfig {
  std::int64_t connect_timeout_ms = 5000;
  std::int64_t close_timeout_ms = 1000;
  std::int64_t poll_bytes = 1 << 20;
  bool cross_memory = true;
  bool allow_ptrace = false;
};

class ShmLink final : public Link {
 public:
  static Result<std::unique_ptr<ShmLink>> open(const Device& device, const ShmConfig& config,
                                               const HostIdentity& host,
                                               const LinkContext& context);
  ~ShmLink() override;
  ShmLink(const ShmLink&) = delete;
  ShmLink& operator=(const ShmLink&) = delete;

  const Device& device() const override { return device_; }
  Result<PeerId> open_peer(PeerRole role) override;
  Result<Blob> offer(PeerId id) override;
  Status accept(PeerId id, std::span<const std::byte> remote_offer) override;
  void close_peer(PeerId id) override;
  void on_control(PeerId, std::span<const std::byte>) override {}  // shm has its own socket

  Result<MemoryId> add_memory(const Memory& memory) override;
  Status remove_memory(MemoryId id) override;
  Result<Blob> export_memory(MemoryId id, PeerId peer) override;
  Result<RemoteId> import_memory(PeerId peer, std::span<const std::byte> blob) override;
  void drop_memory(RemoteId id) override;

  Status post(const Batch& batch) override;
  Status cancel(Ticket ticket) override;
  std::size_t poll(std::span<Event> events) override;
  int wait_fd() const override { return epoll_.get(); }
  bool arm() override;
  std::int64_t next_timer_ns() const override;
  void visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const override;

 private:
  // A connection that has not said yet to which peer it belongs.
  struct Stranger {
    UniqueFd socket;
    Source source{Source::Kind::stranger, this};
    std::int64_t deadline_ns = 0;
    bool said_hello = false;
    Message hello;
    UniqueFd outbox;
  };
  // A peer that was given up before it had proven to be done with our memory.
  struct Ghost {
    OutboxView view;
    UniqueFd pidfd;
  };
  // A copy that MemoryOps completes later. Its gate is its place in the array + 1.
  struct Window {
    bool used = false;
    bool bounced = false;  // through the bounce buffer
    CopyTicket ticket;
    Peer* peer = nullptr;
    std::uint32_t batch = kNoBatch;
    std::uint64_t bytes = 0;
  };
  enum class Moved : std::uint8_t { some, later, failed };
  struct Sink {
    std::span<Event> events;
    std::size_t count = 0;
    bool full() const { return count == events.size(); }
    Event& next() {
      events[count] = Event{};
      return events[count++];
    }
  };

  ShmLink(const Device& device, const ShmConfig& config, const HostIdentity& host,
          const LinkContext& context)
      : device_(device), config_(config), host_(host), context_(context) {}

  // shm_link.cc
  Peer* find_peer(PeerId id);
  Status check_batch(const Batch& batch);
  void finish(Peer& peer, std::uint32_t batch, Code code);
  void end_batches(Peer& peer, Code code);
  void run_peer(Peer& peer, std::uint64_t budget);
  void step_batch(Peer& peer, std::uint32_t batch, std::uint64_t& budget);
  bool runnable(Peer& peer, BatchSlot& batch);
  bool send_note(Peer& peer, const BatchSlot& batch);
  void take_notes(Peer& peer, Sink& sink);
  void ring(Peer& peer);
  void disarm();
  void deliver_batches(Sink& sink);

  // shm_connect.cc
  void run_io();
  void take_strangers();
  void hear_stranger(Stranger& stranger);
  void forget_stranger(Stranger& stranger);
  void refuse(const Stranger& stranger, Refusal refusal);
  bool adopt(Stranger& stranger, Peer& peer);
  void dial(Peer& peer);
  void hear_peer(Peer& peer);
  void on_message(Peer& peer, Message& message, UniqueFd fd);
  bool come_up(Peer& peer, const Message& message, int outbox_fd);
  void drain(Peer& peer, Code code);
  void step_draining(Peer& peer, Sink& sink);
  void destroy(Peer& peer);
  void run_timers();
  void count_unsettled();
  Message greeting(MessageType type, const Peer& peer) const;
  void watch(int fd, Source& source);
  void unwatch(int fd);

  // shm_exports.cc
  void flush_cards(Peer& peer);
  void flush_all_cards();
  bool touched_by_peers(std::uint32_t memory);
  void on_card(Peer& peer, const MemoryCard& card, UniqueFd fd);
  void on_forget(Peer& peer, const MemoryCard& card);
  void map_announced(RemoteMemory& memory, int fd);
  void settle(Peer& peer, RemoteMemory& memory);
  Status try_cross_memory(Peer& peer);
  // ok: usable; exhausted: not announced yet; otherwise why not.
  Status usable(const RemoteName& name);
  void release_name(std::uint64_t id, RemoteName& name);

  // shm_move.cc
  Moved move_window(Peer& peer, std::uint32_t batch, std::uint64_t limit, std::uint64_t& moved);
  std::uint64_t move_mapped(BatchSlot& batch, RemoteMemory& remote, std::uint64_t limit);
  Status move_foreign(Peer& peer, BatchSlot& batch, const RemoteMemory& remote, std::uint64_t limit,
                      std::uint64_t& moved);
  Moved start_window(Peer& peer, std::uint32_t batch, const RemoteMemory& remote,
                     std::uint64_t limit, std::uint64_t& moved);
  void poll_windows();
  Status cross_copy(Peer& peer, Direction direction, std::uint64_t bytes);
  std::uint64_t gather_foreign(BatchSlot& batch, const RemoteMemory& remote, std::uint64_t limit,
                               Cursor& cursor);

  const Device device_;
  const ShmConfig config_;
  const HostIdentity host_;
  const LinkContext context_;

  UniqueFd epoll_, listener_;
  Token name_{};
  Source listener_source_{Source::Kind::listener, this};
  std::list<Stranger> strangers_;

  std::mutex mutex_;  // table_, ghosts_, the set of peers, and their fields marked (m)
  MemoryTable table_;
  std::vector<Ghost> ghosts_;
  SlotMap<std::unique_ptr<Peer>> peers_;
  std::vector<Peer*> order_;  // peers in the order of their turns
  std::atomic<bool> cards_waiting_{false};

  SlotMap<RemoteName> remotes_;
  std::uint32_t pending_names_ = 0;
  BatchPool pool_{1024};
  BatchList done_;
  std::size_t turn_ = 0;
  std::size_t unsettled_ = 0;  // peers that connect or drain, and strangers
  std::uint32_t queued_ = 0;   // batches in the queues of peers
  std::uint32_t polls_since_io_ = 0;
  std::uint64_t bytes_since_io_ = 0;
  bool armed_ = false;

  std::array<Window, kGates - 1> windows_;
  std::uint32_t windows_used_ = 0;
  std::array<CopyPiece, 128> pieces_;
  std::array<iovec, 1024> local_parts_, remote_parts_;
  std::size_t local_count_ = 0, remote_count_ = 0;
  // Between memory that the CPU cannot touch and a peer that cannot be mapped: one at a time.
  std::unique_ptr<std::byte[]> bounce_;
  std::array<iovec, 128> bounce_parts_;  // where its bytes lie at the peer
  std::size_t bounce_count_ = 0;
  bool bounce_used_ = false;

  static constexpr std::size_t kCodes = static_cast<std::size_t>(Code::internal) + 1;
  using CountByCode = std::array<Counter, kCodes>;
  static void count(CountByCode& counters, Code code) {
    counters[std::min(static_cast<std::size_t>(code), kCodes - 1)].add();
  }
  Counter bytes_written_, bytes_read_, batches_ok_, notes_sent_, notes_received_, doorbells_;
  CountByCode batches_failed_, denied_memory_, peers_unfenced_;
  Refusals refusals_;
};

}  // namespace kvl::shm
