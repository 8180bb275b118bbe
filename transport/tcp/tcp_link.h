// The Link of tcp: peers, their lanes, and the loop over the lanes that have something to do.
//
// Owner thread only, but for add_memory and remove_memory. Where to read: tcp_link.cc has what the
// interface asks for, tcp_link_lanes.cc how lanes come up, tcp_link_loss.cc how they and peers end.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "transport/base/slot_map.h"
#include "transport/base/unique_fd.h"
#include "transport/tcp/tcp_carrier.h"
#include "transport/tcp/tcp_core.h"
#include "transport/tcp/tcp_lane.h"

namespace kvl::tcp {

// One lane's place in a peer: what is there now, and when to dial again.
struct LaneSlot {
  Lane* lane = nullptr;
  std::uint32_t incarnation = 0;  // of the lane, or of the last one
  std::uint32_t fenced = 0;       // incarnations up to this one must not come (back)
  std::int64_t redial_ns = INT64_MAX;
  std::int64_t pause_ns = 0;
  std::size_t candidate = 0;
  std::size_t refused = 0;  // addresses that refused in a row
};

struct Peer {
  std::uint64_t id = 0;
  PeerRole role = PeerRole::active;
  bool offered = false, accepted = false, up = false, same_host = false;
  bool closing = false;
  Code closing_code = Code::ok;          // of peer_down
  Code batches_code = Code::ok;          // of its batches
  Token token{};                         // lanes to us present this
  Token remote_token{};                  // and show that they reached us by presenting this
  std::optional<PeerSecurity> security;  // then greetings carry a proof, too
  std::vector<SocketAddress> addresses;
  std::vector<LaneSlot> lanes;
  std::size_t open_lanes = 0;
  std::size_t lanes_alive = 0;  // open, or closed and not settled
  BatchList fifo;               // not given to a lane yet
  BatchList fenced;             // begun on a lane that died; the peer has yet to close its end
  std::int64_t deadline_ns = INT64_MAX;  // to come up, to get a lane again, or to answer a fence
  std::int64_t fence_deadline_ns = INT64_MAX;
};

class TcpLink final : public Link {
 public:
  static Result<std::unique_ptr<Link>> open(const Device& device, const TcpConfig& config,
                                            const LinkContext& context);
  ~TcpLink() override;

  const Device& device() const override { return device_; }
  Result<PeerId> open_peer(PeerRole role) override;
  Status secure_peer(PeerId id, const PeerSecurity& security) override;
  Result<Blob> offer(PeerId id) override;
  Status accept(PeerId id, std::span<const std::byte> remote_offer) override;
  void close_peer(PeerId id) override;
  void on_control(PeerId id, std::span<const std::byte> bytes) override;
  Result<MemoryId> add_memory(const Memory& memory) override { return core_.memory.add(memory); }
  Status remove_memory(MemoryId id) override { return core_.memory.remove(id); }
  Result<Blob> export_memory(MemoryId id, PeerId peer) override;
  Result<RemoteId> import_memory(PeerId peer, std::span<const std::byte> blob) override;
  void drop_memory(RemoteId id) override { core_.remotes.erase(id.value); }
  Status post(const Batch& batch) override;
  Status cancel(Ticket ticket) override;
  std::size_t poll(std::span<Event> events) override;
  int wait_fd() const override { return epoll_.get(); }
  bool arm() override;
  std::int64_t next_timer_ns() const override;
  void visit_metrics(MetricVisitor& visitor, const MetricLabels& labels) const override;

  // For tests: the descriptor of an open lane, or -1.
  int lane_fd(PeerId peer, std::size_t index);

 private:
  TcpLink(const Device& device, const TcpConfig& config, const LinkContext& context);

  // tcp_link.cc
  Status check(const Batch& batch, std::uint64_t& total_bytes) const;
  void release_tokens();
  void dispatch(Peer& peer);
  void list_lane(Lane& lane);
  void serve_lanes();
  void take_ready();
  bool serve_recent_lane();
  std::size_t hand_out(std::span<Event> events);

  // tcp_link_lanes.cc
  Lane* new_lane(UniqueFd fd, Lane::Phase phase, std::int64_t deadline_ns);
  void dial_lane(Peer& peer, std::uint32_t index);
  void dial_failed(Peer& peer, std::uint32_t index, bool refused);
  void accept_lanes();
  void pause_accepting(bool pause);
  void on_greeting_ready(Lane& lane);
  void on_hello(Lane& lane, const Greeting& hello);
  void on_welcome(Lane& lane, const Greeting& welcome);
  bool send_greeting(Lane& lane, GreetingKind kind, const Token& token);
  bool proven(const Peer& peer, const Lane& lane, const Greeting& greeting) const;
  void welcome_lane(Peer& peer, Lane& lane);
  void open_lane(Peer& peer, Lane& lane);

  // tcp_link_loss.cc
  void carrier_lost();
  void drop_lane(Lane& lane);
  // `error`: of the socket, where there is one.
  void fail_greeting(Lane& lane, LaneFault fault, int error = 0);
  void tell_dial_failed(const SocketAddress& to, LaneFault fault, int error);
  void tell_refused_run(Lane& lane);
  void lane_lost(Lane& lane, const Status& why, bool tell);
  void settle_lanes();
  void lane_settled(Lane& lane);
  void fenced(Peer& peer, std::uint32_t lane, std::uint32_t incarnation);
  void end_peer(Peer& peer, Code peer_code, Code batches_code, bool tell);
  void finish_peer(Peer& peer);
  void send_control(const Peer& peer, ControlKind kind, std::uint32_t lane,
                    std::uint32_t incarnation);
  void run_timers();
  void set_timer(std::int64_t at_ns) { timer_ns_ = std::min(timer_ns_, at_ns); }
  std::int64_t now() const { return core_.context.clock.now_ns(); }

  const Device device_;
  const TcpConfig config_;
  const LinkContext context_;
  LinkCore core_;
  UniqueFd epoll_, listener_;
  std::optional<CarrierWatch> carrier_;  // of the interface, where one is named
  SocketAddress bound_;                  // where listener_ is
  Token host_{};
  SlotMap<Peer> peers_;
  SlotMap<std::unique_ptr<Lane>> lanes_;
  Ring<std::uint64_t> active_;                // lanes that want service()
  std::uint64_t recent_lane_ = 0;             // the last that epoll found readable
  std::uint32_t recent_misses_ = UINT32_MAX;  // times since that it had nothing
  std::vector<std::uint64_t> settling_;       // closed lanes whose copies are not over
  std::size_t strangers_ = 0;                 // connections that have not said hello
  BatchList waiting_token_;                   // promise 16
  std::int64_t timer_ns_ = INT64_MAX;
  std::int64_t accept_again_ns_ = INT64_MAX;  // out of descriptors until then
};

}  // namespace kvl::tcp
