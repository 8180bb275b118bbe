// What the parts of an endpoint share: peers and their greeting, transfers in flight, events for
// the owner, messages that came early, outcomes of ended rooms, deadlines, counters.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvcache/handoff/integrity.h"
#include "kvcache/handoff/wire.h"
#include "kvl/handoff.h"
#include "kvl/metrics.h"
#include "kvl/trace.h"
#include "transport/base/slot_map.h"

namespace kvl::handoff {

inline constexpr std::int64_t kMs = 1'000'000;
// One transfer carries at most so many runs: its checksums must fit in one message.
inline constexpr std::uint64_t kSegmentOpsMax = 1u << 16;
// Page ids of a request over all groups.
inline constexpr std::size_t kRoomPagesMax = 1u << 19;
static_assert(kSegmentOpsMax <= kCrcsMax && kRoomPagesMax <= kPagesMax);
static_assert((kSegmentOpsMax + kRoomPagesMax) * sizeof(std::uint32_t) + (64u << 10) <
              kMessageBytesMax);

// What a peer's hello said.
struct RemoteRank {
  EngineId engine{};  // tells one life of the process from another, over any connection
  PageLayout layout;
  std::vector<MemoryHandle> handles;  // by region of its layout
  bool prefill = false, decode = false;
};

struct Peer {
  PeerHandle handle;
  std::uint64_t epoch = 0;
  bool up = false;
  bool approved = false;                     // the peer has accepted our hello
  bool verdict_due = false;                  // its hello came before our peer_up
  Verdict verdict;                           // ours on its hello
  std::shared_ptr<const RemoteRank> remote;  // null: no acceptable hello yet
  std::string refusal;                       // why it is of no use; "" it is
  Code refusal_code = Code::ok;
  std::deque<std::vector<std::byte>> outbox;  // the engine was full

  bool refused() const { return !refusal.empty(); }
  bool ready() const { return up && approved && remote != nullptr && refusal.empty(); }
};

// One transfer of a handoff. Slots are reused with the memory of their plans; everything the Engine
// reads stays here until the transfer event.
struct Segment {
  HandoffSide side = HandoffSide::prefill;
  std::uint64_t room = 0;
  std::uint64_t nonce = 0;
  PeerHandle peer;
  std::int64_t deadline_ns = 0;
  std::uint64_t transfer = 0;  // 0: waits for room in the engine
  bool again = false;          // its first attempt failed the checksum
  RailSet avoid = 0;           // of that attempt
  RailSet rails = 0;           // that carried it, once it has ended
  std::shared_ptr<const RemoteRank> remote;
  SegmentMessage message;
  TransferPlan plan;
};

struct Metrics {
  static constexpr std::size_t kCodes = static_cast<std::size_t>(Code::internal) + 1;
  struct Side {
    Counter opened, committed, released;
    std::array<Counter, kCodes> failed;  // by Code
    Counter unsafe;                      // failed before the pages were proven safe
    Counter bytes, segments;
    Counter elapsed_us;  // of committed ones
  };
  static void count(std::array<Counter, kCodes>& counters, Code code) {
    counters[std::min(static_cast<std::size_t>(code), kCodes - 1)].add();
  }
  std::array<Side, 2> sides;  // by HandoffSide
  Counter crc_runs;
  std::array<Counter, 2> crc_retries_ok, crc_retries_failed;  // by HandoffSide
  BoundedCounts corrupt{"kvlane_handoff_crc_mismatches_total",
                        "Segments whose bytes were not those that were sent",
                        {"side"},
                        {"peer", "path"}};
  std::atomic<std::uint32_t> crc_every{0};
  std::atomic<double> crc_cost{0};
  Counter stale_messages, early_kept, early_dropped;
  Counter peers_ready;
  std::array<Counter, kCodes> bad_messages, peers_refused;  // by Code

  std::atomic<std::uint64_t> rooms{0};  // that hold pages now

  void visit(MetricVisitor& visitor) const;
};

class Core {
 public:
  Core(Engine& engine_in, const Clock& clock_in, HandoffRank rank_in, HandoffConfig config_in);

  Engine& engine;
  const Clock& clock;
  const HandoffRank rank;
  const HandoffConfig config;
  bool cpu_readable = false;  // all regions
  CrcCost crc_cost;
  const std::vector<RailInfo> all_rails;  // of the engine, for its life
  std::vector<MemoryHandle> handles;
  Metrics metrics;

  // --- integrity
  // What this rank asks for.
  CrcChoice crc_wish() const;
  // checksums() of this rank, counted and timed.
  std::vector<std::uint32_t> take_checksums(std::span<const PageOp> ops, CrcChoice choice,
                                            std::uint64_t room, std::uint32_t seq);
  // "tcp/eth0", or several joined by "+".
  std::string path_name(RailSet rails) const;
  // Counts and tells that a segment's bytes were wrong.
  void note_corrupt(HandoffSide side, PeerHandle peer, std::uint64_t room, std::uint32_t seq,
                    const std::string& path, bool again);
  void note_moved(const Segment& segment, Code code);

  // --- what is told of failures
  // Its address, or its number if it has none any more.
  std::string peer_name(PeerHandle peer) const;
  void note_failed(HandoffSide side, std::uint64_t room, Code code, const std::string& reason);
  // A message that does not decode; one that its sender should not have sent, or not any more.
  void note_malformed(PeerHandle peer, const Status& why);
  void note_misplaced(PeerHandle peer, Code code, const char* why);

  // A stage of a room's life for the trace. Before whatever tells others of it: a fault that a test
  // places there strikes between the two.
  void mark(Stage stage, HandoffSide side, std::uint64_t room, Code code = Code::ok,
            std::string_view what = {}) const {
    mark_layers(stage, side, room, {}, code, what);
  }
  void mark_layers(Stage stage, HandoffSide side, std::uint64_t room, Range layers,
                   Code code = Code::ok, std::string_view what = {}) const {
    trace({.stage = stage,
           .room = room,
           .side = to_string(side),
           .rank = rank.index,
           .layer = layers.first,
           .layers = layers.count,
           .code = code,
           .what = what});
  }

  // --- events for the owner
  void emit(HandoffEvent event) { events.push_back(std::move(event)); }
  std::deque<HandoffEvent> events;

  // --- peers
  Peer* find_peer(PeerHandle handle);
  void send(Peer& peer, const Message& message);
  // Best effort: nothing when the peer is gone, since the message would be lost with it.
  void send(PeerHandle handle, const Message& message);
  void flush_outboxes();
  void on_up(const EngineEvent& event);
  // False: late proof about an earlier life of the peer; the present one goes on.
  bool on_down(const EngineEvent& event);
  // True: the peer has just become ready (or refused: then its refusal says so).
  bool on_hello(Peer& peer, const Hello& hello);
  bool on_verdict(Peer& peer, const Verdict& verdict);
  bool refuse(Peer& peer, Code code, std::string why);
  std::unordered_map<std::uint64_t, Peer> peers;
  std::size_t unsent = 0;  // messages in outboxes

  // --- transfers
  // A segment to fill and start(); its slot is the name.
  std::pair<std::uint64_t, Segment*> new_segment();
  // ok: on its way, or waiting for the engine; exactly one end follows. Else: nothing happened.
  Status start(std::uint64_t segment_id, Direction direction);
  // False: it had not started and is gone; no end follows.
  bool cancel(std::uint64_t segment_id);
  void retry_waiting();
  SlotMap<Segment> segments;
  std::unordered_map<std::uint64_t, std::uint64_t> by_transfer;  // transfer -> segment
  std::deque<std::pair<std::uint64_t, Direction>> waiting;
  // Segments that ended otherwise than by a transfer event, with the reason.
  std::deque<std::pair<std::uint64_t, Status>> stillborn;

  // --- messages for rooms that are not open yet, by part and room
  struct Early {
    PeerHandle peer;
    std::int64_t expires_ns = 0;
    Message message;
  };
  using RoomKey = std::pair<Part, std::uint64_t>;
  bool keep_early(Part part, PeerHandle peer, const Message& message);
  std::vector<Early> take_early(Part part, std::uint64_t room);
  // The attempt was given up: what was kept of it must not be acted upon any more.
  void drop_early(Part part, PeerHandle peer, std::uint64_t room, std::uint64_t nonce);
  void forget_early(PeerHandle peer);
  std::vector<Early> expired_early(std::int64_t now_ns);
  std::multimap<RoomKey, Early> early;
  std::deque<std::pair<std::int64_t, RoomKey>> early_order;  // by time of expiry

  // --- outcomes of ended rooms, for those who ask late
  void remember(Part part, std::uint64_t room, Code code);
  const Code* outcome(Part part, std::uint64_t room) const;
  void forget_outcome(Part part, std::uint64_t room) { outcomes.erase({part, room}); }
  void expire_outcomes(std::int64_t now_ns);
  std::map<RoomKey, std::pair<Code, std::int64_t>> outcomes;
  std::deque<std::pair<std::int64_t, RoomKey>> outcome_order;

  // --- attempts of which a transfer to or from that engine ended unproven: we do not vouch for
  // their silence before the proof has come. Another rank of the same request, or the same room's
  // next attempt, is another matter.
  struct Attempt {
    HandoffSide side = HandoffSide::prefill;
    std::uint64_t room = 0, nonce = 0;
    PeerHandle peer;
    EngineId engine{};  // of the other side
  };
  void note_unproven(const Segment& segment);
  // The attempt, once its last transfer has been proven.
  std::optional<Attempt> on_proven(std::uint64_t transfer);
  bool can_vouch(std::uint64_t nonce, const EngineId& other) const {
    return !vouch_none && !unproven.contains({nonce, other});
  }
  std::map<std::pair<std::uint64_t, EngineId>, std::uint32_t> unproven;  // how many transfers
  std::unordered_map<std::uint64_t, Attempt> unproven_transfers;
  bool vouch_none = false;  // too many to remember

  // --- deadlines of open rooms
  std::set<std::tuple<std::int64_t, HandoffSide, std::uint64_t>> deadlines;
  std::int64_t deadline_from(std::int64_t deadline_ms) const;

 private:
  void publish_crc();
  void greet(Peer& peer);
  void send_bytes(Peer& peer, std::vector<std::byte> bytes);
  Status check(const Hello& hello, std::shared_ptr<const RemoteRank>& remote,
               std::string& reason) const;
  bool settle_peer(Peer& peer, bool was_ready, bool was_refused);
};

// Whether `src` sends layers of group `g` to `dst`, and which.
Range layers_between(const PageLayout& src, const PageLayout& dst, std::size_t group);

// The layers of a layout as one index space: from the first held to the last.
Range layer_span(const PageLayout& layout);

// Of one token in one layer of a group: an estimate, to cut segments by.
std::uint64_t token_layer_bytes(const PageLayout& layout);

// `ids` are pages of `group` and enough for tokens [first_token, tokens).
Status check_pages(const LayoutGroup& group, std::span<const std::uint32_t> ids,
                   std::uint64_t first_token, std::uint64_t tokens);

}  // namespace kvl::handoff
