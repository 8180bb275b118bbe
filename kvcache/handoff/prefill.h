// The prefill side of an endpoint: rooms whose KV this rank sends (push) or offers to be read
// (pull).
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "kvcache/handoff/core.h"
#include "kvcache/handoff/handoff_state.h"

namespace kvl::handoff {

// Owned by the endpoint, driven by its thread. Functions named on_… take what was decoded from the
// wire: well-formed, otherwise not trusted.
class PrefillRooms {
 public:
  explicit PrefillRooms(Core& core) : core_(core), span_(layer_span(core.rank.layout)) {}

  Status open(const PrefillOpen& open);
  Status add_pages(std::uint64_t room, std::uint32_t group, std::span<const std::uint32_t> ids);
  Status ready(std::uint64_t room, Range layers, std::uint64_t tokens);
  Status finish(std::uint64_t room, std::span<const std::byte> metadata);
  Status abort(std::uint64_t room, Code code, std::string reason);

  void on_accept(Peer& peer, const Message& message, const Accept& accept);
  void on_again(const Peer& peer, const Message& message, const Again& again);
  void on_done(const Peer& peer, const Message& message);
  void on_abort(Peer& peer, const Message& message, const Abort& abort);
  void on_quiet(const Peer& peer, const Message& message, const Quiet& quiet);
  // `segment` has ended, by an Engine event or without one.
  void on_transfer(const Segment& segment, std::uint64_t segment_id, Code code, Physical physical);
  void on_proven(const Core::Attempt& attempt);

  void on_peer_ready(const Peer& peer);
  void on_peer_down(PeerHandle peer, std::uint64_t epoch, bool fenced);
  void expire(std::uint64_t room);

  // Forgets rooms that hold nothing any more. Only at the end of a public call: the functions
  // above keep references.
  void reap();
  std::size_t size() const { return rooms_.size(); }

 private:
  // A segment that the engine has (push), in the order of creation: delivery is told in that order.
  struct Flight {
    std::uint64_t segment = 0;
    bool ended = false;
    SegmentMessage message;
    RailSet rails = 0;  // that carried it, once it has ended
  };
  // A segment that was told as delivered, should it be asked for again.
  struct Told {
    Range layers;
    std::uint64_t token_begin = 0, token_end = 0;
    RailSet rails = 0;
    bool again = false;  // has been asked for
  };
  // One decode rank of a room.
  struct Pair {
    PeerHandle peer;
    std::uint64_t epoch = 0;
    std::uint64_t nonce = 0;
    std::shared_ptr<const RemoteRank> remote;
    HandoffMode mode = HandoffMode::push;
    CrcChoice crc;
    std::uint64_t skip_tokens = 0;
    std::vector<Accept::Group> pages;  // of the destination
    std::vector<bool> takes;           // by layer of the span
    std::vector<std::uint64_t> sent;   // tokens, by layer of the span
    std::vector<std::uint32_t> told;   // source pages that the other side knows, by group
    std::deque<Flight> flights;
    std::deque<Flight> again;         // segments that are written once more
    std::vector<Told> told_segments;  // push with checksums: by seq
    std::uint32_t flying = 0;         // of them not ended
    std::uint32_t seq = 0;            // segments told
    bool finish_sent = false;
    bool done = false;          // the decode rank has committed
    bool own_unproven = false;  // a transfer ended quarantined
    bool remote_quiet = false;  // pull: its reads have ended
    bool told_quiet = false;    // our last word after the end
  };
  struct Room {
    std::uint64_t room = 0;
    std::uint64_t tokens = 0;
    std::int64_t opened_ns = 0, deadline_ns = 0;
    PrefillState state = PrefillState::opened;
    std::vector<std::vector<std::uint32_t>> pages;  // by group
    std::size_t page_total = 0;
    std::vector<std::uint64_t> ready;  // tokens, by layer of the span
    bool finished = false;
    std::vector<std::byte> metadata;
    std::uint32_t accepts = 0;  // 0: nobody has said how many
    std::vector<Pair> pairs;
    std::uint64_t bytes = 0;
    bool unsafe = false;  // failed was told with pages_safe = false
  };

  Room* find_open(std::uint64_t room);
  static Pair* find_pair(Room& room, std::uint64_t nonce);
  bool holds(std::uint32_t layer) const;
  Status check_accept(const Room& room, const Accept& accept, const Peer& peer) const;
  Status pump(Room& room, Pair& pair);
  Status send_segment(Room& room, Pair& pair, Range layers, std::uint64_t begin, std::uint64_t end);
  void tell(Room& room, Pair& pair, SegmentMessage message);
  Status plan(const Room& room, const Pair& pair, Range layers, std::uint64_t begin,
              std::uint64_t end, TransferPlan& plan) const;
  Status launch(Room& room, Pair& pair, std::uint64_t segment_id);
  Status write_again(Room& room, Pair& pair, std::uint32_t seq);
  void tell_again(Room& room, Pair& pair, const Flight& flight);
  void maybe_finish(Room& room, Pair& pair);
  void fail(Room& room, Code code, std::string reason);
  void commit(Room& room);
  void settle(Room& room);
  bool safe(const Pair& pair) const;
  static bool quiet(const Pair& pair) { return pair.flying == 0 && !pair.own_unproven; }

  Core& core_;
  const Range span_;
  std::unordered_map<std::uint64_t, Room> rooms_;
  std::vector<std::uint64_t> reap_;
};

}  // namespace kvl::handoff
