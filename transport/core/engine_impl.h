// The engine's insides. One mutex guards peers, transfers, memories and events; it is taken per
// batch, never per page, and never while a Link works. Links are called by their rail's loop only
// (registration apart). Files: engine.cc (open, threads, poll), engine_memory.cc, engine_peers.cc
// (control connections), engine_pairs.cc (rails joined with a peer's), engine_transfers.cc.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "kvl/engine.h"
#include "transport/base/slot_map.h"
#include "transport/core/control_net.h"
#include "transport/core/peer.h"
#include "transport/core/rail.h"
#include "transport/core/rail_rate.h"
#include "transport/core/topology.h"
#include "transport/core/transfer.h"

namespace kvl {

class EngineImpl final : public Engine, public RailHost {
 public:
  EngineImpl(const EngineConfig& config, EngineWorld world);
  ~EngineImpl() override;
  Status start(const Settings& settings, std::string* error);

  std::string address() const override { return address_; }
  EngineId id() const override { return id_; }
  std::uint64_t epoch() const override { return epoch_; }
  std::vector<RailInfo> rails() const override;
  Result<MemoryHandle> register_memory(const Memory&) override;
  Status deregister_memory(MemoryHandle) override;
  Result<PeerHandle> connect(std::string_view address) override;
  Status disconnect(PeerHandle) override;
  Result<PeerInfo> describe(PeerHandle) const override;
  Result<TransferId> submit(const Transfer&) override;
  Status cancel(TransferId, std::int64_t deadline_ms) override;
  Status send(PeerHandle, std::span<const std::byte> message) override;
  std::size_t poll(std::span<EngineEvent> events) override;
  bool wait(std::int64_t timeout_ms) override;
  int event_fd() const override { return event_fd_.get(); }
  std::int64_t arm(std::int64_t most_ms) override;
  void visit_metrics(MetricVisitor&) const override;

 private:
  using Lock = std::unique_lock<std::mutex>;

  // Messages of a rail's Link to its peer's Link.
  class RailControl final : public ControlChannel {
   public:
    RailControl(EngineImpl& engine, std::size_t rail) : engine_(engine), rail_(rail) {}
    Status send(PeerId peer, std::span<const std::byte> message) override {
      return engine_.send_link_message(rail_, peer, message);
    }

   private:
    EngineImpl& engine_;
    const std::size_t rail_;
  };

  static constexpr std::size_t kCodes = static_cast<std::size_t>(Code::internal) + 1;
  using CountByCode = std::array<Counter, kCodes>;
  static void count(CountByCode& counters, Code code) {
    counters[std::min(static_cast<std::size_t>(code), kCodes - 1)].add();
  }

  struct PairName {
    std::uint64_t peer = 0;
    std::uint16_t pair = 0;
    std::uint32_t incarnation = 0;
  };
  struct RailState {
    std::unique_ptr<RailControl> control;
    std::unique_ptr<Rail> rail;
    std::deque<PairName> ready;          // pairs that may have pieces to post
    std::atomic<bool> has_ready{false};  // the list is not empty
    bool blocked = false;                // the Link said exhausted
    RailRate rate;
    std::unordered_map<std::uint64_t, PairName> peers;  // by link peer
    Counter bytes, pieces, notes;
    Counter registered_bytes, registration_ns;
    CountByCode failures;                   // pieces
    CountByCode pairs_lost, pairs_refused;  // that were up; that did not come up
  };
  struct MemoryState {
    Memory memory;
    std::vector<MemoryId> ids;  // by rail; 0: this rail cannot
    std::uint32_t uses = 0;     // transfers in flight
    bool ready = false, dropping = false;
    bool reserves_due = false;  // rails that are not near do not have it yet
  };
  // A life of a peer that may still write here after we let it go, and what to say when its process
  // has exited: one event for each time that it was lost.
  struct Unfenced {
    EngineId id{};
    std::uint64_t epoch = 0;
    UniqueFd process;
    std::deque<EngineEvent> events;
  };

  void await_exit(Peer& peer, EngineEvent event);
  void give_up_watching(const EngineId& id);

  // RailHost, called from rail loops.
  bool has_posts(std::size_t rail) override {
    return rails_[rail].has_ready.load(std::memory_order_acquire);
  }
  std::size_t exchange(std::size_t rail, std::span<const Event> events,
                       std::span<Post> posts) override;
  void post_failed(std::size_t rail, const Post&, Status) override;
  bool has_work(std::size_t rail) override;

  // engine.cc
  Status open_control(const Settings& settings, std::string* error);
  Status open_rails(const Settings& settings, std::string* error);
  void start_rail_threads();
  bool control_step();
  void control_loop();
  void drive(bool control);
  bool has_events() const;
  void disarm();
  void wake_control();
  void emit(EngineEvent event);
  std::int64_t control_sleep_ms(std::int64_t max_ms);

  // engine_peers.cc
  Peer* new_peer(std::string address, bool dialer);
  void on_control(ControlEvent& event);
  void on_message(Peer& peer, std::span<const std::byte> message);
  void on_hello(Peer& peer, std::span<const std::byte> body);
  void on_rail_message(Peer& peer, control::Type type, const control::PairMessage& message);
  void dial(Peer& peer);
  void send_hello(Peer& peer);
  void queue_message(Peer& peer, std::vector<std::byte> message);
  Status send_link_message(std::size_t rail, PeerId link_peer, std::span<const std::byte> message);
  void check_up(Peer& peer);
  void announce(Peer& peer);
  void say_unreachable(Peer& peer);
  void refuse(Peer& peer, Refusal refusal, const char* why);
  // `goodbye`: it has said that it leaves, and nobody has to look why.
  void peer_lost(Peer& peer, Code code, const char* why, bool goodbye = false);
  void check_closed(Peer& peer);
  bool is_fenced(const Peer& peer) const;
  void peer_timers(std::int64_t now_ns);
  void timer_at(std::int64_t at_ns) { next_timer_ns_ = std::min(next_timer_ns_, at_ns); }
  bool alive(PairName name, Peer*& peer, Pair*& pair);
  // Of the rails that are up the best, by rank; INT32_MAX: none is.
  static int best_rank(const Peer& peer);
  void say_path(Peer& peer);
  void watch_pairs(Peer& peer, std::int64_t now_ns);
  bool could_end(const Peer& peer, const Pair& pair);
  static PairName name_of(const Peer& peer, const Pair& pair) {
    return {peer.id, static_cast<std::uint16_t>(&pair - peer.pairs.data()), pair.incarnation};
  }

  // engine_pairs.cc
  void make_pairs(Peer& peer);
  Pair* find_pair(Peer& peer, control::PairRef ref);
  control::PairRef ref_of(const Pair& pair) const {
    return {pair.dialer_rail, pair.listener_rail, pair.incarnation};
  }
  std::optional<PeerSecurity> security_of(const Peer& peer, const Pair& pair) const;
  void open_pair(Peer& peer, Pair& pair, std::vector<std::byte> remote_offer);
  void accept_pair(Peer& peer, Pair& pair, std::vector<std::byte> remote_offer);
  void on_pair_opened(PairName name, PeerId link_peer, std::vector<std::byte> offer, Status status);
  void close_pair(Peer& peer, Pair& pair, Code code, std::string reason);
  void stop_using(Peer& peer, Pair& pair, Code code, std::string reason);
  void on_link_down(std::size_t rail, const Event& event);
  void on_pair_closed(PairName name, Code code);
  void on_remote_closed(Peer& peer, Pair& pair, std::uint32_t incarnation);
  void on_pair_up(PairName name);

  // engine_memory.cc
  Result<MemoryId> register_with(std::size_t rail, const Memory& memory);
  void register_near(const Memory& memory, std::vector<MemoryId>& ids, Status& last);
  void register_reserves();
  void export_to_all(std::uint64_t handle, std::size_t rail);
  void export_memory(Peer& peer, Pair& pair, std::uint64_t handle);
  void export_all(Peer& peer, Pair& pair);
  void on_memory_export(Peer& peer, const control::ExportMessage& message);
  void on_memory_drop(Peer& peer, std::uint64_t handle);

  // engine_transfers.cc
  void on_batch(std::size_t rail, const Event& event);
  void on_note(std::size_t rail, const Event& event);
  Status make_pieces(const Peer& peer, TransferState& transfer);
  StripeLimits stripe_limits(const Peer& peer, const Transfer& request) const;
  bool others_are_sooner(Peer& peer, std::uint16_t pair, TransferState& transfer,
                         std::uint64_t bytes);
  void piece_posted(Peer& peer, std::uint16_t pair, std::uint64_t bytes);
  void cancel_posted(const TransferState& transfer);
  void piece_ended(std::size_t rail, TransferState& transfer, std::uint32_t piece, Code code,
                   std::uint64_t bytes);
  bool next_post(Peer& peer, std::uint16_t pair, Post& post);
  bool choose_rank(const Peer& peer, TransferState& transfer);
  void look_for_rank(const Peer& peer, TransferState& transfer, RailSet avoid);
  bool fill_table(Peer& peer, std::uint16_t pair, TransferState& transfer);
  void end_transfer(TransferState& transfer, Code code, std::int64_t grace_ns);
  bool check_finished(TransferState& transfer);
  void finish(TransferState& transfer);
  void kick(Peer& peer);
  void kick_pair(Peer& peer, std::uint16_t pair);
  void transfer_timers(std::int64_t now_ns);
  void prove(Peer& peer, std::uint16_t pair, std::uint32_t incarnation);

  const EngineConfig config_;
  const bool threaded_;
  SteadyClock steady_clock_;
  EngineWorld world_;
  const Clock& clock_;
  std::mt19937_64 random_;
  EngineId id_{};
  std::uint64_t epoch_ = 0;
  std::string address_;
  bool same_host_ = false;  // our listener is loopback
  std::vector<control::RailName> rail_names_;
  Topology topology_;  // read where `near` asks for it
  std::vector<std::unique_ptr<Transport>> transports_;
  std::deque<RailState> rails_;
  std::vector<PathInfo> unusable_;  // transports without a device, or not allowed

  mutable std::mutex mutex_;
  SlotMap<Peer> peers_;
  std::unordered_map<std::uint64_t, std::uint64_t> connections_;  // conn -> peer
  std::unordered_map<std::string, std::uint64_t> dialed_;         // address -> peer
  SlotMap<MemoryState> memories_;
  SlotMap<TransferState> transfers_;
  std::vector<std::uint64_t> transfer_ids_;  // by slot, for tickets
  std::int64_t exchange_ns_ = 0;             // the clock at the running exchange()
  std::vector<std::pair<ConnId, std::vector<std::byte>>> outbox_;
  std::vector<ConnId> hang_up_;
  std::deque<Unfenced> unfenced_;
  // Engines that may still write here and whose end we cannot see: never called fenced again.
  std::set<EngineId> unwatched_;
  std::deque<EngineEvent> events_;
  bool signalled_ = false;
  std::int64_t next_deadline_ns_ = INT64_MAX;  // of any transfer; a lower bound
  std::int64_t next_timer_ns_ = 0;             // of any peer; a lower bound
  Counter retries_, peers_left_;
  CountByCode transfers_ended_;
  Refusals refusals_;
  BoundedCounts peers_lost_{
      "kvlane_peers_lost_total", "Peers lost without a goodbye, by cause.", {"cause"}, {"peer"}};
  BoundedCounts peers_unreachable_{"kvlane_peers_unreachable_total",
                                   "Peers that connect() has not led to in time, by cause.",
                                   {"cause"},
                                   {"peer"}};
  BoundedCounts peers_degraded_{"kvlane_peers_degraded_total",
                                "Peers whose bytes changed to a worse transport.",
                                {"from", "to"},
                                {"peer"}};
  BoundedCounts rails_refused_{"kvlane_rail_open_failures_total",
                               "Devices that could not be opened, by cause.",
                               {"transport", "cause"},
                               {"device"}};

  UniqueFd event_fd_;  // for the user
  UniqueFd control_wake_;
  std::atomic<bool> control_sleeping_{false}, stopping_{false};
  std::atomic<bool> has_outbox_{false};
  std::vector<ControlEvent> control_events_;
  std::vector<std::pair<ConnId, std::vector<std::byte>>> sending_;
  std::thread control_thread_;
  std::thread registrar_thread_;  // where there are reserves
  std::condition_variable registrar_;
  std::uint64_t registering_ = 0;  // the memory that the registrar has in hand
  std::mutex drive_mutex_;         // progress = caller: one driver at a time
  std::int64_t control_polled_ns_ = 0;
  std::atomic<bool> armed_{false};
};

}  // namespace kvl
