// The decode side of an endpoint: rooms whose KV this rank receives, and the group's agreement.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "kvcache/handoff/core.h"
#include "kvcache/handoff/handoff_state.h"

namespace kvl::handoff {

// Owned by the endpoint, driven by its thread. Functions named on_… take what was decoded from the
// wire: well-formed, otherwise not trusted.
class DecodeRooms {
 public:
  explicit DecodeRooms(Core& core);

  Status open(DecodeOpen open);
  Status abort(std::uint64_t room, Code code, std::string reason);

  // From prefill.
  void on_offer(Peer& peer, const Message& message, const Offer& offer);
  void on_segment(Peer& peer, const Message& message, const SegmentMessage& segment);
  void on_finish(Peer& peer, const Message& message, const Finish& finish);
  void on_abort(Peer& peer, const Message& message, const Abort& abort);
  void on_quiet(const Peer& peer, const Message& message, const Quiet& quiet);
  void on_transfer(const Segment& segment, std::uint64_t segment_id, Code code, Physical physical);

  // The group (group.cc). To the lead:
  void on_join(Peer& peer, const Message& message, const Join& join);
  void on_vote(Peer& peer, const Message& message);
  void on_committed(Peer& peer, const Message& message);
  void on_member_abort(Peer& peer, const Message& message, const Abort& abort);
  // To a member:
  void on_commit(Peer& peer, const Message& message);
  void on_lead_abort(Peer& peer, const Message& message, const Abort& abort);

  void on_proven(const Core::Attempt& attempt);
  void on_peer_ready(Peer& peer);
  void on_peer_refused(const Peer& peer);
  // `now`: it is down, and not only an earlier life of it.
  void on_peer_down(PeerHandle peer, std::uint64_t epoch, bool fenced, bool now);
  void expire(std::uint64_t room);

  // As PrefillRooms::reap.
  void reap();
  std::size_t size() const { return rooms_.size(); }

 private:
  // A pushed segment that failed its checksum and is being written once more.
  struct Doubt {
    std::uint32_t seq = 0;
    Range layers;
    std::uint64_t token_begin = 0, token_end = 0;
  };
  // One prefill rank of a room.
  struct Source {
    enum class Stage : std::uint8_t { unsent, accepted, offered, finished };
    PeerHandle peer;
    std::uint32_t accepts = 1;
    Stage stage = Stage::unsent;
    std::uint64_t epoch = 0;
    std::shared_ptr<const RemoteRank> remote;
    CrcChoice crc;
    std::vector<bool> gives;                        // by layer of the span
    std::vector<std::uint64_t> announced;           // tokens, by layer of the span
    std::vector<std::uint64_t> arrived;             // count of tokens, by layer of the span
    std::vector<std::vector<std::uint32_t>> pages;  // its pages, by group
    std::vector<std::uint64_t> reading;             // segments that the engine has (pull)
    std::vector<Doubt> doubts;                      // push
    std::uint32_t seq = 0;
    std::vector<std::byte> metadata;
    bool own_unproven = false;  // a read ended quarantined
    bool remote_quiet = false;  // nothing that it writes can land here any more
    bool fenced = false;        // nothing at all of it can
    bool told_quiet = false;
  };
  struct Member {
    PeerHandle peer;
    std::uint64_t nonce = 0;
    bool joined = false, voted = false, committed = false;
  };
  struct Room {
    DecodeOpen open;
    std::uint64_t nonce = 0;
    std::int64_t opened_ns = 0, deadline_ns = 0;
    DecodeState state = DecodeState::opened;
    std::vector<Source> sources;
    bool covered = false;          // all sources are known, and they hold all that we need
    std::vector<bool> layer_told;  // by layer of the span
    std::vector<Member> members;   // lead: by group rank; [0] is not used
    bool joined = false;           // member: the lead was told of us
    std::uint64_t bytes = 0;
    bool unsafe = false;  // failed was told with pages_safe = false
  };

  Room* find_open(std::uint64_t room);
  // The room and source that a prefill rank's message is about; null: stale, and answered.
  std::pair<Room*, Source*> find_source(Peer& peer, const Message& message);
  Status check(const DecodeOpen& open);
  HandoffMode best_mode(PeerHandle peer) const;
  void send_accept(Room& room, Source& source, Peer& peer);
  Status check_coverage(const Room& room) const;
  Status check_segment(const Room& room, const Source& source, const SegmentMessage& segment) const;
  static Status take_pages(Source& source, const SegmentMessage& segment);
  Status plan(const Room& room, const Source& source, const SegmentMessage& segment,
              TransferPlan& plan) const;
  // `failed`: the rails of a first attempt whose checksum did not match.
  Status read(Room& room, Source& source, const SegmentMessage& segment,
              const RailSet* failed = nullptr);
  bool matches(const Room& room, const Source& source, const SegmentMessage& segment,
               const TransferPlan& plan);
  void take_delivered(Room& room, Source& source, const SegmentMessage& segment);
  void take_again(Room& room, Source& source, const SegmentMessage& segment);
  void arrive(Room& room, Source& source, const SegmentMessage& segment);
  void tell_layers(Room& room, Range layers);
  void check_complete(Room& room);
  void commit(Room& room);
  void fail(Room& room, Code code, std::string reason);
  void settle(Room& room);
  bool safe(const Room& room, const Source& source) const;
  static bool quiet(const Source& s) { return s.reading.empty() && !s.own_unproven; }

  // group.cc
  bool leads(const Room& room) const { return room.open.group_rank == 0; }
  void send_join(Room& room, Peer& lead);
  void vote(Room& room);
  void decide(Room& room);
  Member* find_member(Room& room, const Peer& peer, const Message& message);
  void abort_group(Room& room, Code code, const std::string& reason);

  Core& core_;
  const Range span_;
  std::uint64_t next_nonce_;
  TransferPlan scratch_;  // for checks of pushed segments
  std::unordered_map<std::uint64_t, Room> rooms_;
  std::vector<std::uint64_t> reap_;
};

}  // namespace kvl::handoff
