// One simulated NIC, and the reference implementation of Link: what the interface promises, with as
// little machinery as it takes. Its "hardware" is the world's events: bytes land in the target's
// memory, and are checked there, without the target's poll().
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "kvl/transport.h"
#include "transport/base/slot_map.h"
#include "transport/sim/sim_world.h"

namespace kvl::sim {

// Packets are not ordered, neither within a batch nor between batches. A note travels after every
// packet of its batch was acknowledged. The world outlives the Link; one thread drives both.
class SimLink final : public Link {
 public:
  SimLink(SimWorld& world, const Port& port, Device device);
  ~SimLink() override;

  const Device& device() const override { return device_; }
  Result<PeerId> open_peer(PeerRole role) override;
  Result<Blob> offer(PeerId) override;
  Status accept(PeerId, std::span<const std::byte> remote_offer) override;
  void close_peer(PeerId) override;
  void on_control(PeerId, std::span<const std::byte>) override {}  // needs no such messages
  Result<MemoryId> add_memory(const Memory&) override;
  Status remove_memory(MemoryId) override;
  Result<Blob> export_memory(MemoryId, PeerId) override;
  Result<RemoteId> import_memory(PeerId, std::span<const std::byte> blob) override;
  void drop_memory(RemoteId id) override { remotes_.erase(id.value); }
  Status post(const Batch&) override;
  Status cancel(Ticket) override;
  std::size_t poll(std::span<Event> events) override;
  int wait_fd() const override { return -1; }
  bool arm() override;
  std::int64_t next_timer_ns() const override;
  void visit_metrics(MetricVisitor&, const MetricLabels&) const override;

  // For the world.
  const Port& port() const { return port_; }
  void on_device_dead();
  void on_lanes_broken(NodeId other);

 private:
  // How the other side is addressed: a Link, a peer of it, and the secret it gave us.
  struct Address {
    Port port;
    std::uint64_t link = 0, peer = 0, secret = 0;
  };
  using Grants = std::set<std::uint64_t>;
  struct Peer {
    Address remote;
    std::uint64_t secret = 0;  // ours: packets that come without it are dropped
    std::int64_t deadline_ns = 0;
    bool accepted = false;  // remote is known
    bool heard = false;     // the remote has accepted us
    bool up = false;
    std::deque<std::uint64_t> batches;  // in order of post
    Grants exported;                    // memories of ours that it may name
  };
  struct MemoryState {
    Memory memory;
    std::uint32_t uses = 0;  // by batches of ours
  };
  struct Remote {
    std::uint64_t peer = 0;
    std::uint64_t key = 0;  // MemoryId of the other side
  };
  // Where in a batch: an op and a position in it.
  struct Cursor {
    std::size_t op = 0;
    std::uint64_t position = 0;
  };
  struct BatchState {
    Batch batch;
    std::array<std::byte, kNoteBytesMax> note{};
    Cursor next;
    std::uint64_t left = 0;  // bytes not sent yet
    std::uint64_t done = 0;
    std::uint32_t inflight = 0;  // packets
    bool note_sent = false;
    bool cancelled = false;
    Code code = Code::ok;  // the first failure
  };
  // What travels of an op: the whole of it, so that the target can judge it, and the part to move.
  struct Run {
    std::uint64_t key = 0, offset = 0, stride = 0;
    std::uint32_t bytes = 0, count = 1;
    std::uint64_t begin = 0, end = 0;  // positions in the run
  };
  struct Packet {
    std::uint64_t batch = 0;
    Direction direction = Direction::write;
    Cursor from;  // where its bytes lie in the batch
    std::vector<Run> runs;
    std::vector<std::byte> payload;
    std::uint64_t bytes = 0;
    Code code = Code::ok;  // in the answer
    std::uint64_t sender_link = 0, sender_peer = 0;
    std::int64_t sent_ns = 0;
    // What the receivers' filters of repeated packets remember.
    bool applied = false, answered = false;
  };
  using PacketPtr = std::shared_ptr<Packet>;

  Peer* peer_of(PeerId id) { return peers_.find(id.value); }
  const Peer* peer_of(PeerId id) const { return peers_.find(id.value); }
  void make_up(std::uint64_t id, Peer& peer);
  void lose_peer(std::uint64_t id, Code code, bool tell);
  Code check_local(const Batch& batch) const;
  static bool run_inside(const Run& run, std::uint64_t memory_bytes);

  // The life of a batch.
  bool can_send(const BatchState& state) const;
  void settle(std::uint64_t id);
  void finish(std::uint64_t id, Code code);

  // Sending (sim_packets.cc).
  template <typename F>
  void at_remote(std::uint64_t peer_id, const Address& remote, std::uint64_t bytes, F f,
                 bool repeats = false);
  void say_hello(std::uint64_t peer_id, const Peer& peer);
  void say_bye(const Peer& peer);
  void send_packet(std::uint64_t id, BatchState& state);
  void send_note(std::uint64_t id, BatchState& state);
  template <typename F>  // f(local bytes, length) for `bytes` of the batch from `from` on
  void for_each_local(const BatchState& state, Cursor from, std::uint64_t bytes, F f) const;

  // Receiving: the other side's packets call these.
  bool admit(std::uint64_t peer_id, std::uint64_t secret);
  bool admit_ghost(std::uint64_t peer_id, std::uint64_t secret, const Packet& packet) const;
  bool sender_has_closed(const Packet& packet) const;
  bool reads_into_nothing(const Packet& packet) const;
  bool sends_to(std::uint64_t peer_id) const;
  void settle_ghosts();
  void move(const PacketPtr& packet, const Grants& granted, NodeId sender);
  void on_data(std::uint64_t peer_id, bool ghost, const PacketPtr& packet, NodeId sender);
  Code apply(const Run& run, const Grants& granted, Direction direction, std::byte* payload,
             NodeId sender, bool watched);
  void observe(Touch touch, const std::byte* data, std::uint64_t bytes, NodeId other) const {
    if (Observer* const o = world_.observer()) o->touched(port_.node, touch, data, bytes, other);
  }
  void on_answer(const Packet& packet);
  void on_note_answer(std::uint64_t batch);

  SimWorld& world_;
  const Port port_;
  const Device device_;
  const std::uint64_t id_;
  SlotMap<Peer> peers_;
  SlotMap<MemoryState> memories_;
  SlotMap<Remote> remotes_;
  SlotMap<BatchState> batches_;
  std::map<std::uint64_t, std::uint64_t> by_ticket_;
  // Fence::process_exit: closed peers whose last packets may still land.
  struct Ghost {
    Address remote;
    std::uint64_t secret = 0;
    std::int64_t closed_ns = 0;
    Code code = Code::ok;
    bool told = false;  // peer_down has been shown
    Grants exported;
  };
  std::map<std::uint64_t, Ghost> ghosts_;  // by peer
  std::deque<Event> events_;
  Counter bytes_, packets_, refused_;
};

}  // namespace kvl::sim
